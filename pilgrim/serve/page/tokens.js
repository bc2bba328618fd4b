// A reply as the tokens that it was drawn in. The less likely a token was, the stronger its colour; who points at
// it, or comes to it with the arrow keys, sees what else the model might have said.
//
// A token: [text, log-probability, [[other text, its log-probability], …]].

const tip = document.getElementById("token-tip");

export function tokenView(tokens) {
  const box = document.createElement("div");
  box.className = "tokens";
  box.tabIndex = 0;
  box.setAttribute("aria-label", "The reply's tokens; move with the arrow keys to see how likely each was");
  const spans = tokens.map(span);
  box.append(...spans);
  let at = -1;
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    at = Math.min(spans.length - 1, Math.max(0, at + step));
    show(spans[at], tokens[at]);
  });
  box.addEventListener("blur", hide);
  spans.forEach((one, number) => {
    one.addEventListener("mouseenter", () => show(one, tokens[number]));
    one.addEventListener("mouseleave", hide);
    one.addEventListener("click", () => ((at = number), show(one, tokens[number])));
  });
  return box;
}

function span([text, logprob]) {
  const one = document.createElement("span");
  one.textContent = text;
  one.className = "token";
  one.dataset.doubt = logprob === null ? 0 : Math.min(9, Math.floor(-logprob * 2)); // 9: less than 1.1%
  return one;
}

export const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 10 ? `${p.toFixed(0)}%` : p >= 0.1 ? `${p.toFixed(1)}%` : "<0.1%";
};

const shown = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "␣");

function show(one, [text, logprob, others]) {
  hide();
  one.classList.add("shown");
  const rows = others.some(([other]) => other === text) ? others : [...others, [text, logprob]];
  tip.replaceChildren(...rows.map(([other, its]) => row(other, its, other === text)));
  tip.hidden = false;
  const place = one.getBoundingClientRect();
  const width = tip.offsetWidth;
  tip.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - width - 8))}px`;
  const below = place.bottom + 6;
  tip.style.top = `${below + tip.offsetHeight > window.innerHeight ? place.top - tip.offsetHeight - 6 : below}px`;
}

function row(text, logprob, chosen) {
  const line = document.createElement("div");
  line.className = chosen ? "chosen" : "";
  const word = document.createElement("code");
  word.textContent = shown(text);
  const bar = document.createElement("meter");
  bar.min = 0;
  bar.max = 1;
  bar.value = Math.exp(logprob);
  const number = document.createElement("span");
  number.textContent = percent(logprob);
  line.append(word, bar, number);
  return line;
}

function hide() {
  tip.hidden = true;
  document.querySelector(".token.shown")?.classList.remove("shown");
}
