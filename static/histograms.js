// Histograms of the quality report, drawn from the figures in their canvas; what lies beyond a threshold stands out.
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => Number(value.toPrecision(3)).toString();

  function beyond(left, right, thresholds) {
    return (thresholds.low !== null && right <= thresholds.low) || (thresholds.high !== null && left >= thresholds.high);
  }

  function chart(canvas) {
    const counts = JSON.parse(canvas.dataset.counts);
    const edges = JSON.parse(canvas.dataset.edges);
    const thresholds = JSON.parse(canvas.dataset.thresholds);
    const flagged = counts.map((_, index) => beyond(edges[index], edges[index + 1], thresholds));
    const drawn = new Chart(canvas, {
      type: "bar",
      data: { labels: counts.map((_, index) => short(edges[index])), datasets: [{ data: counts, barPercentage: 1, categoryPercentage: 0.95 }] },
      options: {
        animation: false,
        maintainAspectRatio: false,
        plugins: {
          legend: { display: false },
          tooltip: { callbacks: { title: ([item]) => `${short(edges[item.dataIndex])} to ${short(edges[item.dataIndex + 1])}`, label: (item) => `${item.raw} images` } },
        },
        scales: { x: { ticks: { maxTicksLimit: 6 }, grid: { display: false } }, y: { beginAtZero: true, ticks: { precision: 0, maxTicksLimit: 5 } } },
      },
    });
    return { drawn, flagged };
  }

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  const charts = Array.from(document.querySelectorAll("canvas[data-histogram]"), chart);

  function paint() {
    for (const { drawn, flagged } of charts) {
      drawn.data.datasets[0].backgroundColor = flagged.map((out) => colour(out ? "--chart-2" : "--chart-1"));
      for (const scale of Object.values(drawn.options.scales)) {
        scale.ticks.color = colour("--bs-body-color");
        scale.grid.color = colour("--bs-border-color");
      }
      drawn.update();
    }
  }

  paint();
  document.addEventListener("themechange", paint);
})();
