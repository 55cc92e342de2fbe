// Versions over each other: ROC, precision and recall, and their trainings. Drawn from the JSON in the page.
(() => {
  const source = document.getElementById("comparison-charts");
  if (!source) return;
  const compared = JSON.parse(source.textContent);
  const { COLOURS, DASHES, guide, points } = Curves;
  const POINTS = ["circle", "rect", "triangle", "rectRot", "star"];
  // A version looks the same in every chart, also where another one is missing in it.
  const places = new Map();
  for (const item of [...compared.roc, ...compared.pr, ...compared.histories]) {
    if (!places.has(item.label)) places.set(item.label, places.size);
  }

  function line(label, words, data, more = {}) {
    // Three colours and four dashes make twelve lines, of which neighbours differ in both.
    const place = places.get(label);
    return Curves.line(words, data, {
      paint: COLOURS[place % COLOURS.length],
      borderDash: DASHES[place % DASHES.length],
      pointStyle: POINTS[place % POINTS.length],
      ...more,
    });
  }

  function roc() {
    const curves = compared.roc.map((item) =>
      line(item.label, `${item.label} (AUC ${item.auc.toFixed(3)})`, points(item.false_positive_rate, item.true_positive_rate)));
    return [...curves, guide("Guessing", [{ x: 0, y: 0 }, { x: 1, y: 1 }])];
  }

  // The area is that of steps, so steps are drawn.
  const pr = () => compared.pr.map((item) =>
    line(item.label, `${item.label} (area ${item.area.toFixed(3)})`, points(item.recall, item.precision), { stepped: "after" }));

  const history = (key) => () => compared.histories.map((item) =>
    line(item.label, item.label, points(item.epochs, item[key]), { pointRadius: 3, spanGaps: true }));

  const share = { min: 0, max: 1 };
  const epochs = { title: "Epoch", min: 1, ticks: { precision: 0 } };
  const CHARTS = {
    roc: { x: { title: "False positive rate (1 − specificity)", ...share }, y: { title: "True positive rate (sensitivity)", ...share }, lines: roc },
    pr: { x: { title: "Recall (sensitivity)", ...share }, y: { title: "Precision", ...share }, lines: pr },
    val_loss: { x: epochs, y: { title: "Validation loss" }, lines: history("val_loss") },
    val_auc: { x: epochs, y: { title: "Validation AUC", max: 1 }, lines: history("val_auc") },
  };

  function tip(item) {
    const { x, y } = item.raw;
    return `${item.dataset.label}: ${y.toFixed(3)} at ${Number.isInteger(x) ? x : x.toFixed(3)}`;
  }

  Curves.draw("data-comparison-chart", CHARTS, { tip });
})();
