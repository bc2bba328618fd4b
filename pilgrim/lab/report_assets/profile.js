// What moves on a profile's page beside the theme: buttons that copy a setting. The glossary needs no
// script: its entries are popovers, which the browser opens by itself.
for (const button of all("[data-copy]"))
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
