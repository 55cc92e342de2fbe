// Charts of a report: ROC, precision and recall, calibration. Drawn from the JSON in the page; its tables say the same.
(() => {
  const source = document.getElementById("report-charts");
  if (!source) return;
  const report = JSON.parse(source.textContent);
  const { COLOURS, DASHES, guide, points } = Curves;
  const MOST_NAMED = 8;
  const name = (curve) => curve.class || "Mean";

  // Curves differ by colour and by dash, so that colour is never alone; the mean of several is drawn thick.
  const curve = (label, data, index, more = {}) => Curves.line(label, data, {
    paint: COLOURS[index % COLOURS.length],
    borderDash: DASHES[Math.floor(index / COLOURS.length) % DASHES.length],
    ...more,
  });
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

  const share = (title) => ({ title, min: 0, max: 1, ticks: { stepSize: 0.2 } });
  const CHARTS = {
    roc: { x: share("1 − specificity"), y: share("Sensitivity"), lines: roc },
    pr: { x: share("Recall"), y: share("Precision"), lines: pr },
    calibration: { x: share("Stated probability"), y: share("Observed share"), lines: calibration },
  };

  function tip(item) {
    const images = item.raw.n ? `, ${item.raw.n} images` : "";
    return `${item.dataset.label}: ${item.raw.y.toFixed(3)} at ${item.raw.x.toFixed(3)}${images}`;
  }

  // On paper a chart is not to be coarser than the letters around it.
  if (document.body.classList.contains("paper")) Chart.defaults.devicePixelRatio = 3;
  Curves.draw("data-report-chart", CHARTS, { tip, labels: { filter: named } });
})();
