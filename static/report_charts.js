// Charts of a report: ROC, precision and recall, calibration. Drawn from the JSON in the page; its tables say the same.
(() => {
  const source = document.getElementById("report-charts");
  if (!source) return;
  const report = JSON.parse(source.textContent);
  const COLOURS = ["--chart-1", "--chart-2", "--chart-3"];
  const MOST_NAMED = 8;
  const DASHES = [[], [6, 3], [2, 3], [10, 4, 2, 4]];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const points = (xs, ys) => xs.map((x, index) => ({ x, y: ys[index] }));
  const name = (curve) => curve.class || "Mean";

  function curve(label, data, index, more = {}) {
    // Curves differ by colour and by dash, so that colour is never alone; the mean of several is drawn thick.
    return {
      label,
      data,
      paint: COLOURS[index % COLOURS.length],
      borderDash: DASHES[Math.floor(index / COLOURS.length) % DASHES.length],
      borderWidth: 2,
      pointRadius: 0,
      tension: 0,
      ...more,
    };
  }

  const guide = (label, data) => curve(label, data, 0, { always: true, paint: "--muted", borderDash: [4, 4], borderWidth: 1.5 });
  const thick = (item) => (item.class ? {} : { always: true, borderWidth: 4, borderDash: [] });
  // With many classes the legend would leave no room for the curves; the tables name them all.
  const named = (entry, data) => data.datasets.length <= MOST_NAMED || data.datasets[entry.datasetIndex].always;

  function roc() {
    const curves = report.roc.map((item, index) =>
      curve(`${name(item)} (AUC ${item.auc.toFixed(3)})`, points(item.false_positive_rate, item.true_positive_rate), index, thick(item)));
    const { sensitivity, specificity } = report.metrics;
    if (report.positive_class && sensitivity.value !== null && specificity.value !== null) {
      const chosen = [{ x: 1 - specificity.value, y: sensitivity.value }];
      curves.unshift(curve("At the threshold", chosen, 1, { pointRadius: 7, pointStyle: "rectRot", showLine: false }));
    }
    return [...curves, guide("Guessing", [{ x: 0, y: 0 }, { x: 1, y: 1 }])];
  }

  function pr() {
    // The area is that of steps, so steps are drawn.
    const curves = report.pr.map((item, index) =>
      curve(`${name(item)} (area ${item.area.toFixed(3)})`, points(item.recall, item.precision), index, { stepped: "after", ...thick(item) }));
    const guessed = report.pr.length ? report.pr[report.pr.length - 1].prevalence : null;
    if (guessed === null) return curves;
    const label = report.pr.length > 1 ? "Guessing (mean prevalence)" : "Guessing (prevalence)";
    return [...curves, guide(label, [{ x: 0, y: guessed }, { x: 1, y: guessed }])];
  }

  function calibration() {
    const filled = (bins) => bins.filter((bin) => bin.n).map((bin) => ({ x: bin.confidence, y: bin.observed, n: bin.n }));
    const { before, after, temperature } = report.calibration;
    const shown = { pointRadius: 4 };
    const label = temperature === 1 ? "As it answers" : "After the temperature";
    const curves = [curve(label, filled(after.bins), 0, { ...shown, pointStyle: "circle" })];
    if (temperature !== 1) {
      curves.push(curve("Before", filled(before.bins), 1, { ...shown, pointStyle: "rect", borderDash: [6, 3] }));
    }
    return [...curves, guide("Perfect", [{ x: 0, y: 0 }, { x: 1, y: 1 }])];
  }

  const CHARTS = {
    roc: { x: "1 − specificity", y: "Sensitivity", curves: roc },
    pr: { x: "Recall", y: "Precision", curves: pr },
    calibration: { x: "Stated probability", y: "Observed share", curves: calibration },
  };

  function tip(item) {
    const images = item.raw.n ? `, ${item.raw.n} images` : "";
    return `${item.dataset.label}: ${item.raw.y.toFixed(3)} at ${item.raw.x.toFixed(3)}${images}`;
  }

  function chart(canvas) {
    const meaning = CHARTS[canvas.dataset.reportChart];
    const axis = (title) => ({ type: "linear", min: 0, max: 1, title: { display: true, text: title }, ticks: { stepSize: 0.2 }, grid: {} });
    return new Chart(canvas, {
      type: "line",
      data: { datasets: meaning.curves() },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "nearest", intersect: false },
        plugins: {
          legend: { position: "bottom", labels: { boxWidth: 24, boxHeight: 1, filter: named } },
          tooltip: { callbacks: { title: () => "", label: tip } },
        },
        scales: { x: axis(meaning.x), y: axis(meaning.y) },
      },
    });
  }

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  // On paper a chart is not to be coarser than the letters around it.
  if (document.body.classList.contains("paper")) Chart.defaults.devicePixelRatio = 3;
  const charts = Array.from(document.querySelectorAll("canvas[data-report-chart]"), chart);

  function paint() {
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

  paint();
  document.addEventListener("themechange", paint);
})();
