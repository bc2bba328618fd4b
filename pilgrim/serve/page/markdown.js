// What a model writes, as HTML that can do no harm. marked makes HTML of Markdown; HTML that the model wrote itself
// is shown as the text that it is. DOMPurify then takes out whatever is not harmless markup. Images are taken out,
// too: one from elsewhere would tell its server that somebody reads this, and what is in its address.

import { marked } from "/page/vendor/marked.js";
import DOMPurify from "/page/vendor/purify.js";

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
marked.use({ gfm: true, breaks: true, renderer: { html: ({ text }) => escaped(text) } });

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "input",
    "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "align", "start", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "INPUT") {
    if (node.getAttribute("type") !== "checkbox") node.remove();
    node.setAttribute("disabled", "");
  }
});

export function render(text) {
  const box = document.createElement("div");
  box.className = "markdown";
  box.innerHTML = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const pre of box.querySelectorAll("pre")) pre.append(copyButton(() => pre.querySelector("code")?.textContent ?? ""));
  return box;
}

export function copyButton(text, label = "Copy the code") {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}
