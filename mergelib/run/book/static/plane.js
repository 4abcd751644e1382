// The lesson's toy, mergelib/lesson/toy.py, in the reader's browser. Heads are rows [w_x, w_y, b].
const times = (M, v) => M.map(row => row[0] * v[0] + row[1] * v[1]);
const logits = (head, z) => head.map(([x, y, b]) => x * z[0] + y * z[1] + b);
const largest = v => v.indexOf(Math.max(...v));
const softmax = v => {
  const top = Math.max(...v), e = v.map(x => Math.exp(x - top)), sum = e.reduce((a, b) => a + b);
  return e.map(x => x / sum);
};
const turn = (degrees, mirror) => {
  const a = degrees * Math.PI / 180;
  return [[Math.cos(a), -mirror * Math.sin(a)], [Math.sin(a), mirror * Math.cos(a)]];
};

// Merged features of a task's test inputs, its old and its re-aligned head, and what either gets right.
function merge(world, angle, lam, mirrored, name) {
  const theta = {A: turn(angle, 1), B: turn(world.turn_b, mirrored ? -1 : 1)}, task = world.tasks[name];
  const merged = [0, 1].map(i => [0, 1].map(j => {
    const base = i === j ? 1 : 0;
    return base + lam * (theta.A[i][j] - base + theta.B[i][j] - base);
  }));
  const old = task.centres.map(c => [...times(theta[name], c).map(v => v / world.spread ** 2), 0]);
  // FT-Classifier as in the lesson: gradient descent on KL from the old head, no label used.
  const few = task.few.map(x => times(merged, x)), fitted = old.map(row => [...row]);
  const teacher = task.few.map(x => softmax(logits(old, times(theta[name], x))));
  for (let step = 0; step < 1000; step++) {
    const gradient = old.map(() => [0, 0, 0]);
    few.forEach((z, i) => softmax(logits(fitted, z)).forEach((q, c) => {
      [...z, 1].forEach((v, j) => { gradient[c][j] += (q - teacher[i][c]) * v / few.length; });
    }));
    fitted.forEach((row, c) => row.forEach((_, j) => { row[j] -= gradient[c][j]; }));
  }
  const features = task.points.map(x => times(merged, x));
  const right = head => features.map((z, i) => largest(logits(head, z)) === task.labels[i]);
  return {features, old, fitted, right_old: right(old), right_fitted: right(fitted)};
}

// Where two classes tie and no third wins, as one line with gaps.
function ties(head, reach) {
  const x = [], y = [];
  head.forEach((a, i) => head.slice(i + 1).forEach(b => {
    const n = [a[0] - b[0], a[1] - b[1]], length = Math.hypot(...n), offset = (a[2] - b[2]) / length ** 2;
    for (let t = -reach; t <= reach; t += reach / 400) {
      const z = [-offset * n[0] - t * n[1] / length, -offset * n[1] + t * n[0] / length], found = logits(head, z);
      const tied = Math.max(...found) - found[i] < 1e-6 && Math.hypot(...z) < reach;
      x.push(tied ? z[0] : NaN);
      y.push(tied ? z[1] : NaN);
    }
    x.push(NaN);
    y.push(NaN);
  }));
  return {x, y};
}

// Draw what the controls ask for: `models` are Bokeh's, `world` is as of plane.py.
function show({world, angle, lam, buttons, says, clouds, vectors, old_lines, new_lines}) {
  const [mirrored, other, realign] = [0, 1, 2].map(i => buttons.active.includes(i));
  const name = other ? "B" : "A", found = merge(world, angle.value, lam.value, mirrored, name);
  const head = realign ? found.fitted : found.old, right = realign ? found.right_fitted : found.right_old;
  const labels = world.tasks[name].labels, looks = labels.map(c => world.looks[c]);
  clouds.data = {
    x: found.features.map(z => z[0]), y: found.features.map(z => z[1]), marker: looks.map(look => look[1]),
    edge: looks.map(look => look[0]), face: looks.map((look, i) => right[i] ? look[0] : "transparent"),
  };
  const rim = head.map(w => 0.94 * world.limit / Math.hypot(w[0], w[1]));
  vectors.data = {
    x: head.map((w, c) => rim[c] * w[0]), y: head.map((w, c) => rim[c] * w[1]),
    marker: head.map((_, c) => world.looks[c][1]), face: head.map((_, c) => world.looks[c][0]),
  };
  old_lines.data = ties(found.old, world.limit);
  new_lines.data = realign ? ties(found.fitted, world.limit) : {x: [], y: []};
  const percent = hits => `<b>${Math.round(100 * hits.filter(Boolean).length / hits.length)}&nbsp;%</b>`;
  says.text = `Task ${name}. Old classifier: ${percent(found.right_old)}, re-aligned: `
    + `${realign ? percent(found.right_fitted) : "?"}. Guessing: ${Math.round(100 / head.length)}&nbsp;%.`;
}
