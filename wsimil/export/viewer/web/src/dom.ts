// Elements made in code: text goes in as text nodes only, so a hostile name stays a name.

type Attributes = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** An element with attributes (null, undefined and false are left out, true is empty) and children, strings as text. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly (Node | string | null)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

export function setAttributes(element: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Replaces what an element holds. */
export function fill(element: Element, ...children: readonly (Node | string | null)[]): void {
  element.replaceChildren(...children.filter((child) => child !== null));
}

export function button(text: string, action: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const element = el("button", { type: "button", ...attributes }, text);
  element.addEventListener("click", action);
  return element;
}

/** A labelled choice of one of several values. */
export function select(
  label: string,
  options: readonly (readonly [string, string])[],
  value: string,
  action: (value: string) => void,
): HTMLLabelElement {
  const element = el("select", {}, ...options.map(([key, text]) => el("option", { value: key }, text)));
  element.value = value;
  element.addEventListener("change", () => action(element.value));
  return el("label", { class: "field" }, el("span", {}, label), element);
}

/** A short number: `digits` significant ones, a real minus sign, no exponent between 0.001 and 99999. */
export function short(value: number, digits = 3): string {
  if (Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
}

/** A probability as a percentage; no rounding to 0 % or 100 % of what is neither. */
export function percent(p: number): string {
  if (Number.isNaN(p)) return "–";
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

export function count(n: number): string {
  return n.toLocaleString("en-US");
}

/** The words of whatever was thrown. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}
