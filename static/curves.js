// What the charts of a report and of a comparison share: lines over two numeric axes, in the colours of the theme.
// Charts of trainings (charts.js, search_curves.js) are renewed while they are shown and keep their own.
const Curves = (() => {
  const COLOURS = ["--chart-1", "--chart-2", "--chart-3"];
  const DASHES = [[], [6, 3], [2, 3], [10, 4, 2, 4]];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const points = (xs, ys) => xs.map((x, index) => ({ x, y: ys[index] }));

  // One line; `paint` names a colour of the theme, `more` is what it has beside the rest.
  const line = (label, data, more) => ({ label, data, borderWidth: 2, pointRadius: 0, tension: 0, ...more });
  const guide = (label, data) => line(label, data, { always: true, paint: "--muted", borderDash: [4, 4], borderWidth: 1.5 });

  const axis = ({ title, ticks = {}, ...more }) => ({ type: "linear", title: { display: true, text: title }, ticks, grid: {}, ...more });

  function chart(canvas, { lines, x, y }, { tip, labels }) {
    return new Chart(canvas, {
      type: "line",
      data: { datasets: lines() },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "nearest", intersect: false },
        plugins: {
          legend: { position: "bottom", labels: { boxWidth: 24, boxHeight: 1, ...labels } },
          tooltip: { callbacks: { title: () => "", label: tip } },
        },
        scales: { x: axis(x), y: axis(y) },
      },
    });
  }

  function paint(charts) {
    for (const item of charts) {
      for (const data of item.data.datasets) data.borderColor = data.backgroundColor = colour(data.paint);
      item.options.plugins.legend.labels.color = colour("--bs-body-color");
      for (const scale of Object.values(item.options.scales)) {
        scale.title.color = scale.ticks.color = colour("--bs-body-color");
        scale.grid.color = colour("--bs-border-color");
      }
      item.update();
    }
  }

  // `meanings`: by the value of the attribute of a canvas, its lines and its two axes.
  function draw(attribute, meanings, options) {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    const canvases = Array.from(document.querySelectorAll(`canvas[${attribute}]`));
    const charts = canvases.map((canvas) => chart(canvas, meanings[canvas.getAttribute(attribute)], options));
    paint(charts);
    document.addEventListener("themechange", () => paint(charts));
  }

  return { COLOURS, DASHES, draw, guide, line, points };
})();
