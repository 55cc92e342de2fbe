// The learning curves of a run, drawn from its JSON and renewed while it goes on.
(() => {
  const root = document.querySelector("[data-curves-url]");
  if (!root) return;
  const RENEW_MS = 3000;
  const SERIES = {
    loss: [
      { key: "loss", label: "Training", colour: "--chart-1" },
      { key: "val_loss", label: "Validation", colour: "--chart-2", dash: [6, 3] },
    ],
    quality: [
      { key: "accuracy", label: "Training accuracy", colour: "--chart-1" },
      { key: "val_accuracy", label: "Validation accuracy", colour: "--chart-2", dash: [6, 3] },
      { key: "val_auc", label: "Validation AUC", colour: "--chart-3", dash: [2, 3] },
    ],
  };
  const POINTS = ["circle", "rect", "triangle"];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function dataset({ key, label, dash = [] }, index) {
    return { key, label, data: [], borderDash: dash, borderWidth: 2, pointStyle: POINTS[index], pointRadius: 3, tension: 0 };
  }

  function axis(title, more = {}) {
    return { title: { display: true, text: title }, ticks: {}, grid: {}, ...more };
  }

  function chart(canvas) {
    const name = canvas.dataset.chart;
    const y = name === "loss" ? axis("Loss", { beginAtZero: true }) : axis("Fraction of 1", { max: 1 });
    return new Chart(canvas, {
      type: "line",
      data: { labels: [], datasets: SERIES[name].map(dataset) },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "index", intersect: false },
        plugins: { legend: { position: "bottom", labels: { usePointStyle: true, boxWidth: 8, boxHeight: 8 } } },
        scales: { x: axis("Epoch"), y },
      },
    });
  }

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  const charts = Array.from(root.querySelectorAll("canvas"), chart);

  function paint() {
    const text = colour("--bs-body-color");
    const line = colour("--bs-border-color");
    for (const item of charts) {
      const series = SERIES[item.canvas.dataset.chart];
      item.data.datasets.forEach((data, index) => {
        data.borderColor = data.backgroundColor = colour(series[index].colour);
      });
      item.options.plugins.legend.labels.color = text;
      for (const scale of Object.values(item.options.scales)) {
        scale.title.color = scale.ticks.color = text;
        scale.grid.color = line;
      }
      item.update();
    }
  }

  async function renew() {
    const answer = await fetch(root.dataset.curvesUrl, { headers: { "X-Poll": "1", Accept: "application/json" } });
    if (!answer.ok || answer.redirected) return;
    const curves = await answer.json();
    for (const item of charts) {
      item.data.labels = curves.epoch;
      for (const data of item.data.datasets) data.data = curves[data.key];
      item.update();
    }
  }

  async function keepRenewing() {
    // A missed answer is no reason to stop: the next one has everything again.
    await renew().catch(() => undefined);
    if ("active" in root.dataset) window.setTimeout(keepRenewing, RENEW_MS);
  }

  paint();
  document.addEventListener("themechange", paint);
  keepRenewing();
})();
