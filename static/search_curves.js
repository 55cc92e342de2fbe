// The validation curves of all runs of a search over each other, drawn from their JSON and renewed while it goes on.
(() => {
  const root = document.querySelector("[data-search-curves-url]");
  if (!root) return;
  const RENEW_MS = 5000;
  const MOST_NAMED = 12;
  const COLOURS = ["--chart-1", "--chart-2", "--chart-3"];
  const DASHES = [[], [6, 3], [2, 3], [10, 4, 2, 4]];
  const POINTS = ["circle", "rect", "triangle", "rectRot", "star"];
  const TITLES = { val_loss: "Validation loss", val_auc: "Validation AUC" };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let runs = [];

  function line(run, index, series) {
    // The best run is drawn thick; the others differ by colour, dash and sign, so that colour is never alone.
    return {
      label: run.best ? `Run ${run.run} (best)` : `Run ${run.run}`,
      words: run.label,
      data: run.epoch.map((epoch, place) => ({ x: epoch, y: run[series][place] })),
      borderColor: colour(COLOURS[index % COLOURS.length]),
      backgroundColor: colour(COLOURS[index % COLOURS.length]),
      borderDash: run.best ? [] : DASHES[Math.floor(index / COLOURS.length) % DASHES.length],
      borderWidth: run.best ? 4 : 1.5,
      pointStyle: POINTS[index % POINTS.length],
      pointRadius: run.best ? 4 : 2,
      order: run.best ? 0 : 1,
      tension: 0,
    };
  }

  function chart(canvas) {
    const y = { title: { display: true, text: TITLES[canvas.dataset.series] }, ticks: {}, grid: {} };
    if (canvas.dataset.series === "val_auc") y.max = 1;
    return new Chart(canvas, {
      type: "line",
      data: { datasets: [] },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "nearest", intersect: false },
        plugins: {
          legend: { position: "bottom", labels: { usePointStyle: true, boxWidth: 8, boxHeight: 8 } },
          tooltip: { callbacks: { label: (item) => `${item.dataset.words}: ${item.formattedValue}` } },
        },
        scales: { x: { type: "linear", min: 1, title: { display: true, text: "Epoch" }, ticks: { precision: 0 }, grid: {} }, y },
      },
    });
  }

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  const charts = Array.from(root.querySelectorAll("canvas"), chart);

  function paint() {
    const text = colour("--bs-body-color");
    const grid = colour("--bs-border-color");
    // In the order of the runs, so that each keeps its colour when the places change.
    const ordered = [...runs].sort((a, b) => a.run - b.run);
    for (const item of charts) {
      item.data.datasets = ordered.map((run, index) => line(run, index, item.canvas.dataset.series));
      const legend = item.options.plugins.legend;
      legend.labels.color = text;
      legend.labels.filter = (entry, data) => data.datasets.length <= MOST_NAMED || data.datasets[entry.datasetIndex].order === 0;
      for (const scale of Object.values(item.options.scales)) {
        scale.title.color = scale.ticks.color = text;
        scale.grid.color = grid;
      }
      item.update();
    }
  }

  async function renew() {
    const answer = await fetch(root.dataset.searchCurvesUrl, { headers: { "X-Poll": "1", Accept: "application/json" } });
    if (!answer.ok || answer.redirected) return;
    runs = (await answer.json()).runs;
    paint();
  }

  async function keepRenewing() {
    // A missed answer is no reason to stop: the next one has everything again.
    await renew().catch(() => undefined);
    if ("active" in root.dataset) window.setTimeout(keepRenewing, RENEW_MS);
  }

  document.addEventListener("themechange", paint);
  keepRenewing();
})();
