// Loads one picture of the slide so that the page may read its pixels again, as a screenshot does.
//
// Browsers let a page that was opened as a file read no image file, not even of its own folder. A folder therefore holds its
// pictures as scripts, each of which hands the page a data: URL; see `handing_over` in page.py.

/** Addresses of images, data: URLs among them, have another end. */
export function isHandedOver(address: string): boolean {
  return address.endsWith(".js");
}

/** Throws where it cannot be read. */
export async function loadPicture(address: string): Promise<HTMLImageElement> {
  const image = new Image();
  image.src = isHandedOver(address) ? await handedOver(address) : address;
  await image.decode();
  return image;
}

function handedOver(address: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const end = (): void => {
      script.remove();
      const { picture } = script.dataset;
      if (picture === undefined) reject(new Error(`${address} holds no picture`));
      else resolve(picture);
    };
    script.addEventListener("load", end);
    script.addEventListener("error", end);
    script.src = address;
    document.head.append(script);
  });
}
