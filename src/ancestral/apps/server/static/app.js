// The page: asks what the model can do, sets up the tools, and switches between them.

import { call, server } from "./api.js";
import { prepare } from "./closeup.js";
import { Compress } from "./compress.js";
import { $, $$, create, say, shown } from "./dom.js";
import { Draw } from "./draw.js";
import { Inpaint } from "./inpaint.js";
import { Morph } from "./morph.js";
import { Nearest } from "./nearest.js";
import { Time } from "./time.js";
import { Tour } from "./tour.js";
import { Hand, listen } from "./well.js";

const IDLE = 15_000; // milliseconds between looks for the server while nothing is asked of it
const CHANNELS = { 1: "grey", 3: "colour", 4: "colour and opacity" };
const tabs = $$("[role=tab]");
const hand = new Hand(); // one picture for all tools that take one
const tools = {};

function open(name) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
  }
  document.body.dataset.tool = name;
  tools[name]?.opened?.();
}

function go(name) {
  const fragment = `#${tools[name]?.fragment?.() ?? name}`;
  if (location.hash !== fragment) history.pushState(null, "", fragment);
  open(name);
}

function route() {
  const [name, settings] = location.hash.slice(1).split("?");
  const exists = tabs.some((tab) => tab.getAttribute("aria-controls") === name);
  if (settings) tools[name]?.restore?.(new URLSearchParams(settings));
  open(exists ? name : "draw");
}

function move(event) {
  const place = tabs.indexOf(event.target);
  const moves = { ArrowRight: place + 1, ArrowLeft: place - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const tab = tabs[moves[event.key] % tabs.length];
  tab.focus();
  go(tab.getAttribute("aria-controls"));
}

function use(name, uri, end) {
  (end ? tools.morph.ends[end] : hand).put(uri);
  go(name);
  $(`#tab-${name}`).focus();
}

function build(model) {
  const [channels, height, width] = model.shape;
  say($("#model"), `${model.name} · ${width} × ${height}, ${CHANNELS[channels] ?? `${channels} channels`} · T = ${model.T}`);
  document.documentElement.style.setProperty("--aspect", `${width} / ${height}`);
  document.documentElement.dataset.pixels = Math.max(height, width) <= 128 ? "few" : "many";
  document.title = `${model.name} · Ancestral`;
  const make = { draw: Draw, time: Time, inpaint: Inpaint, morph: Morph, compress: Compress, nearest: Nearest };
  for (const [name, Tool] of Object.entries(make)) {
    const panel = $(`#${name}`);
    const offered = model.features[name] ?? true;
    if (offered === true) tools[name] = new Tool(panel, model, hand);
    else {
      const lead = $(".lead", panel);
      panel.replaceChildren(lead, create("p", { className: "notice", textContent: shown(offered) }));
      panel.dataset.state = "unavailable";
    }
  }
  prepare(model, use);
  listen();
  $("#report").hidden = model.report !== true;
  new Tour(go, model.report);
}

function connection(model) {
  const line = $("#connection");
  server.addEventListener("change", async () => {
    document.body.dataset.server = server.there ? "there" : "gone";
    line.hidden = server.there;
    say(line, server.there ? "" : "The server does not answer. Is ancestral serve still running? Looking for it…", "error");
    if (server.there && model.now) {
      const found = await call("GET", "model").catch(() => null);
      if (found && (found.name !== model.now.name || String(found.shape) !== String(model.now.shape))) location.reload();
    }
  });
}

async function start() {
  const model = { now: null };
  connection(model);
  while (!model.now) {
    model.now = await call("GET", "model").catch(() => null);
    if (!model.now)
      await new Promise((resolve) => {
        if (server.there) setTimeout(resolve, 2000);
        else server.addEventListener("change", resolve, { once: true });
      });
  }
  build(model.now);
  for (const tab of tabs) {
    tab.addEventListener("click", () => go(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", move);
  }
  setInterval(() => document.hidden || call("GET", "model").catch(() => {}), IDLE);
  window.addEventListener("popstate", route);
  route();
  document.body.dataset.state = "ready";
}

start();
