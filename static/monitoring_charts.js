// Charts of Monitoring: load, time, drift and agreement by week. Drawn from the JSON in the page; its tables say the same.
(() => {
  const source = document.getElementById("monitoring-charts");
  if (!source) return;
  const found = JSON.parse(source.textContent);
  if (!found.weeks) return;
  const { COLOURS, DASHES, guide, line, points } = Curves;
  const places = found.weeks.map((_, index) => index);
  const ends = [places[0], places[places.length - 1]];

  // Lines differ by colour and by dash; a week alone is a point.
  const weekly = (label, values, index, more = {}) => line(label, points(places, values), {
    paint: COLOURS[index % COLOURS.length],
    borderDash: DASHES[index % DASHES.length],
    pointRadius: 4,
    ...more,
  });
  const bound = (label, values, index) => weekly(label, values, index, { pointRadius: 2, borderWidth: 1, borderDash: [2, 3] });
  // A limit far above all values would press them flat.
  const isNear = (values, value) => Math.max(0, ...values.filter((one) => one !== null)) > value / 4;
  const limit = (label, value) => guide(label, ends.map((x) => ({ x, y: value })));

  const weeks = {
    title: "Week from",
    min: ends[0] - 0.3,
    max: ends[1] + 0.3,
    ticks: { stepSize: 1, maxRotation: 60, callback: (value) => (Number.isInteger(value) ? (found.weeks[value] || "").slice(5) : "") },
    // Ticks at whole weeks alone, whatever the edges of the axis are.
    afterBuildTicks: (axis) => { axis.ticks = places.map((value) => ({ value })); },
  };
  const shares = found.shares.week || [];
  const steps = (values) => [...values, values[values.length - 1]].map((y, x) => ({ x, y }));

  const CHARTS = {
    load: {
      x: weeks,
      y: { title: "Requests", min: 0, ticks: { precision: 0 } },
      lines: () => [weekly("Answers", found.answers, 0), weekly("Refused by the gate", found.refused, 1), weekly("Errors", found.errors, 2)],
    },
    latency: {
      x: weeks,
      y: { title: "Milliseconds", min: 0 },
      lines: () => [weekly("Median", found.p50, 0), weekly("95th percentile", found.p95, 1), ...(isNear(found.p95, found.limits.latency) ? [limit("Limit", found.limits.latency)] : [])],
    },
    psi: {
      x: weeks,
      y: { title: "Stability index (PSI)", min: 0 },
      lines: () => [weekly("PSI", found.psi, 0), bound("Lower bound", found.psi_low, 1), bound("Upper bound", found.psi_high, 2), limit("Limit", found.limits.psi)],
    },
    agreement: {
      x: weeks,
      y: { title: "Share", min: 0, max: 1, ticks: { stepSize: 0.2 } },
      lines: () => [
        weekly("Agreement", found.agreement, 0),
        bound("Lower bound", found.agreement_low, 1),
        bound("Upper bound", found.agreement_high, 2),
        limit("Limit", found.limits.agreement),
      ],
    },
    shares: {
      x: { title: "Bins between the deciles of validation", min: 0, max: Math.max(shares.length, 1), ticks: { stepSize: 1, callback: (value) => (value < shares.length ? value + 1 : "") } },
      y: { title: "Share of the images", min: 0 },
      lines: () => (shares.length
        ? [
          line("This week", steps(shares), { paint: COLOURS[0], stepped: "before" }),
          line("Validation", steps(found.shares.expected), { paint: "--muted", borderDash: [4, 4], stepped: "before" }),
        ]
        : []),
    },
  };

  const rounded = (value) => (Math.abs(value) < 10 ? value.toFixed(3) : Math.round(value).toString());
  function tip(item) {
    const onWeeks = item.chart.canvas.getAttribute("data-monitoring-chart") !== "shares";
    const where = onWeeks ? `week from ${found.weeks[item.raw.x]}` : `bin ${item.raw.x + 1}`;
    return `${item.dataset.label}: ${rounded(item.raw.y)}, ${where}`;
  }

  Curves.draw("data-monitoring-chart", CHARTS, { tip, labels: {} });
})();
