// Learning curves: of a run, from its JSON and renewed while it goes on; of a version, from what its page brings.
(() => {
  const root = document.querySelector("[data-curves-url], [data-curves]");
  if (!root) return;
  const RENEW_MS = 3000;
  const training = (key) => ({ key, label: "Training", colour: "--chart-1" });
  const validation = (key) => ({ key, label: "Validation", colour: "--chart-2", dash: [6, 3] });
  const SERIES = {
    loss: [training("loss"), validation("val_loss")],
    auc: [training("auc"), validation("val_auc")],
    accuracy: [training("accuracy"), validation("val_accuracy")],
    rate: [{ key: "learning_rate", label: "Learning rate", colour: "--chart-3" }],
  };
  const AXES = {
    loss: () => axis("Loss", { beginAtZero: true }),
    auc: () => axis("AUC", { suggestedMin: 0.5, max: 1 }),
    accuracy: () => axis("Fraction of 1", { suggestedMin: 0.5, max: 1 }),
    rate: () => axis("Learning rate", { beginAtZero: true }),
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
    const y = AXES[name]();
    return new Chart(canvas, {
      type: "line",
      data: { labels: [], datasets: SERIES[name].map(dataset) },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "index", intersect: false },
        spanGaps: true,
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

  function draw(curves) {
    for (const item of charts) {
      item.data.labels = curves.epoch;
      // Runs of earlier releases did not keep every figure.
      for (const data of item.data.datasets) data.data = curves[data.key] ?? [];
      item.update();
    }
  }

  async function renew() {
    const answer = await fetch(root.dataset.curvesUrl, { headers: { "X-Poll": "1", Accept: "application/json" } });
    if (answer.ok && !answer.redirected) draw(await answer.json());
  }

  async function keepRenewing() {
    // A missed answer is no reason to stop: the next one has everything again.
    await renew().catch(() => undefined);
    if ("active" in root.dataset) window.setTimeout(keepRenewing, RENEW_MS);
  }

  paint();
  document.addEventListener("themechange", paint);
  if (root.dataset.curvesUrl) keepRenewing();
  else draw(JSON.parse(document.getElementById(root.dataset.curves).textContent));
})();
