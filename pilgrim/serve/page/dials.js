// The settings of a chat: how its replies are drawn. They are kept with the chat; a new chat begins with those
// that were set last in this browser.

const REMEMBERED = "pilgrim-dials";

// name, what it is called, least, most, step, what it is if nobody touches it, what it does
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, 0.7, "0 takes the likeliest token each time; higher is more daring"],
  ["top_p", "Top-p", 0.05, 1, 0.05, 1, "Only the likeliest tokens that together reach this share"],
  ["top_k", "Top-k", 0, 200, 1, 0, "Only so many of the likeliest tokens; 0: all"],
  ["min_p", "Min-p", 0, 0.5, 0.01, 0, "Only tokens at least this likely, next to the likeliest"],
  ["repetition_penalty", "Repetition penalty", 1, 2, 0.05, 1, "Makes what the reply already has less likely; 1: off"],
  ["max_tokens", "Longest reply", 16, 2048, 16, 256, "In tokens"],
];

export const DEFAULTS = {
  ...Object.fromEntries(SLIDERS.map(([name, , , , , value]) => [name, value])),
  system: "",
  tools: false,
};

export function remembered() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(REMEMBERED) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

// What a request says of them. What is off is left out, so that the server's own word counts.
export function asked(dials) {
  const off = { top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1 };
  const names = SLIDERS.map(([name]) => name).filter((name) => dials[name] !== off[name]);
  return Object.fromEntries(names.map((name) => [name, dials[name]]));
}

// Fills the panel, and calls `changed` with new dials whenever a person moves one.
export class Dials {
  constructor(changed) {
    this.changed = changed;
    this.inputs = {};
    const box = document.getElementById("sliders");
    for (const [name, title, least, most, step, , what] of SLIDERS) {
      const label = document.createElement("label");
      label.title = what;
      const words = document.createElement("span");
      words.textContent = title;
      const value = document.createElement("output");
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min: least, max: most, step, id: `dial-${name}` });
      input.setAttribute("aria-description", what);
      input.addEventListener("input", () => (value.textContent = input.value));
      input.addEventListener("change", () => this.take()); // not while it is being drawn: each is kept by the server
      label.append(words, value, input);
      box.append(label);
      this.inputs[name] = { input, value };
    }
    this.system = document.getElementById("system");
    this.tools = document.getElementById("tools");
    this.system.addEventListener("change", () => this.take());
    this.tools.addEventListener("change", () => this.take());
    document.getElementById("reset-dials").addEventListener("click", () => {
      this.show(DEFAULTS);
      this.take();
    });
  }

  show(dials) {
    for (const [name, { input, value }] of Object.entries(this.inputs)) {
      input.value = dials[name] ?? DEFAULTS[name];
      value.textContent = input.value;
    }
    this.system.value = dials.system ?? "";
    this.tools.checked = Boolean(dials.tools);
  }

  take() {
    const dials = { system: this.system.value, tools: this.tools.checked };
    for (const [name, { input, value }] of Object.entries(this.inputs)) {
      dials[name] = Number(input.value);
      value.textContent = input.value;
    }
    localStorage.setItem(REMEMBERED, JSON.stringify(dials));
    this.changed(dials);
  }
}
