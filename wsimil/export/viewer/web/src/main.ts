// Starts the viewer in the page, and leaves a read-only handle for tests.

import { App } from "./app";
import { readPage } from "./data";
import { el, fill, words } from "./dom";
import "./viewer.css";

const root = document.getElementById("wsimil");
if (root) {
  try {
    const app = new App(root, readPage());
    // What tests and scripts may ask; it changes nothing and is no interface for anything else.
    const handle = {
      ready: () => app.ready,
      complete: () => app.complete,
      state: () => structuredClone(app.state),
      imageToViewer: (x: number, y: number) => app.imageToViewer(x, y),
      heatToViewer: (x: number, y: number) => app.heatToViewer(x, y),
    };
    Object.defineProperty(window, "wsimil", { value: Object.freeze(handle) });
  } catch (error) {
    fill(
      root,
      el(
        "div",
        { class: "problem", role: "alert" },
        el("h2", {}, "The viewer could not start"),
        el("p", {}, words(error)),
      ),
    );
  }
}
