// What on the report moves beside the theme: the charts with their common view and cursor, and the reels.
// Without scripts the page has words in place of the charts, and three samples in place of each reel.
function setUpCharts() {
  const { stages, charts } = JSON.parse(document.getElementById("payload").textContent);
  const figures = all(".chart");
  if (!stages.length || !figures.length) return;
  const stretches = layOut(stages);
  const buttons = all("[data-zoom]");
  const narrowest = Math.min(...stretches.map((stretch) => ((stretch.to - stretch.from) / stretch.span) * 4));
  const shared = {
    view: { low: 0, high: 1 },
    cursor: null,
    show(low, high) {
      if (high - low < narrowest) [low, high] = [(low + high - narrowest) / 2, (low + high + narrowest) / 2];
      this.view = { low: clamp(low, 0, 1), high: clamp(high, 0, 1) };
      press(buttons, buttons.find((button) => {
        const stretch = stretches[button.dataset.zoom] ?? { from: 0, to: 1 };
        return Math.abs(stretch.from - this.view.low) + Math.abs(stretch.to - this.view.high) < 1e-9;
      }));
      for (const chart of drawn) chart.draw();
    },
    zoom(factor) {
      const { low, high } = this.view;
      const size = Math.min((high - low) * factor, 1);
      const centre = this.cursor ?? (low + high) / 2;
      const from = clamp(centre - size * ((centre - low) / (high - low)), 0, 1 - size);
      this.show(from, from + size);
    },
    point(u) {
      this.cursor = u;
      for (const chart of drawn) chart.drawCursor();
    },
  };
  const specs = new Map(charts.map((spec) => [spec.id, spec]));
  const drawn = figures.map((figure) => new Chart(figure, specs.get(figure.dataset.chart), stretches, shared));
  for (const button of buttons)
    button.addEventListener("click", () => {
      const stretch = stretches[button.dataset.zoom] ?? { from: 0, to: 1 };
      shared.show(stretch.from, stretch.to);
    });
  for (const button of all("[data-zoom-by]"))
    button.addEventListener("click", () => shared.zoom(Number(button.dataset.zoomBy)));
}

// A reel: all its frames lie in the same cell of a grid, and the slider says which one is seen.
function setUpReel(reel) {
  const frames = all(".frame", reel);
  const slider = reel.querySelector("input");
  const play = reel.querySelector(".play");
  const cells = reel.querySelector(".frames");
  let timer = null;
  const show = () => {
    frames.forEach((frame, index) => frame.toggleAttribute("data-on", index === Number(slider.value)));
    const frame = frames[slider.value];
    slider.setAttribute("aria-valuetext", frame.dataset.place);
    reel.querySelector(".track").dataset.stage = frame.dataset.stage;
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.removeAttribute("data-playing");
    cells.setAttribute("aria-live", "polite");
    play.setAttribute("aria-label", "Play");
  };
  const next = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) === frames.length - 1) pause();
  };
  play.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (Number(slider.value) === frames.length - 1) slider.value = 0;
    show();
    play.setAttribute("data-playing", "");
    cells.setAttribute("aria-live", "off"); // nobody can listen to a text a second
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(next, 900);
  });
  slider.addEventListener("input", () => { pause(); show(); });
  for (const hop of all(".hop", reel))
    hop.addEventListener("click", () => {
      pause();
      slider.value = Number(slider.value) + Number(hop.dataset.hop);
      show();
    });
  show();
  return {
    reel,
    pause,
    place: () => frames[slider.value].dataset.place,
    // Goes to the same evaluation as another reel, if this one has it.
    goTo(place) {
      const index = frames.findIndex((frame) => frame.dataset.place === place);
      if (index >= 0) slider.value = index;
      show();
    },
  };
}

function setUpReels() {
  const reels = all(".reel").map(setUpReel);
  const buttons = all("[data-reel]");
  for (const button of buttons)
    button.addEventListener("click", () => {
      const before = reels.find(({ reel }) => reel.hasAttribute("data-on"));
      const chosen = reels[button.dataset.reel];
      before.pause();
      chosen.goTo(before.place());
      for (const { reel } of reels) reel.toggleAttribute("data-on", reel === chosen.reel);
      press(buttons, button);
    });
}

setUpCharts();
setUpReels();
