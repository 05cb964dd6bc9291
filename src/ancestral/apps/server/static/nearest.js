// Nearest: the training images closest to the picture in hand.

import { neighbours } from "./closeup.js";
import { $, say, values } from "./dom.js";
import { Well } from "./well.js";

export class Nearest {
  constructor(panel, model, hand) {
    Object.assign(this, { panel, hand, status: $("form > .status", panel) });
    new Well($(".well", panel), hand, model);
    panel.dataset.state = "idle";
    $("form", panel).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#find();
    });
  }

  async #find() {
    if (this.panel.dataset.state === "running") return;
    try {
      if (!this.hand.image) throw new Error("Choose a picture first");
      const { count } = values($("form", this.panel));
      this.panel.dataset.state = "running";
      say(this.status, "Looking; the first time all training images are read");
      const metric = await neighbours(this.hand.image, count, $(".stage .neighbours", this.panel), (text) => say(this.status, text));
      $(".empty", this.panel).hidden = true;
      this.panel.dataset.state = "done";
      say(this.status, metric);
    } catch (error) {
      this.panel.dataset.state = "failed";
      say(this.status, error.message, "error");
    }
  }
}
