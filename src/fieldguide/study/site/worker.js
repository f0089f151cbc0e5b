// The model in a thread of its own. Pictures are resized and normalised in its graph.

import * as ort from "./runtime/ort.js";

const MOST_PIXELS = 100e6;
const TOP = 5;

ort.env.wasm.numThreads = 1; // more would need headers that not every server sends
ort.env.wasm.wasmPaths = {
  mjs: new URL("runtime/glue.js", import.meta.url).href,
  wasm: new URL("runtime/ort.wasm", import.meta.url).href,
};

let ready = null;

async function start() {
  const [session, about, known] = await Promise.all([
    ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] }),
    fetch("about.json").then((answer) => answer.json()),
    fetch("known.json").then((answer) => answer.json()),
  ]);
  return { session, about, known };
}

// The upright pixels of a file in full size, RGB, on white where it is transparent.
async function pixels(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("This browser cannot read the file as a picture.");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    bitmap.close();
    throw new Error(`The picture is too large for a browser: ${width} × ${height} pixels.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}

function softmax(logits, temperature) {
  const scaled = Array.from(logits, (each) => each / temperature);
  const largest = Math.max(...scaled);
  const powers = scaled.map((each) => Math.exp(each - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((each) => each / sum);
}

// The number of values below (or, with `equal`, at or below) a limit in an ascending list.
function below(sorted, limit, equal = false) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < limit || (equal && sorted[middle] === limit)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The classes in the set (analysis/conformal.py), and the familiarity (analysis/unknown.py).
function judged(members, { scores, doubts, photos }, coverage) {
  const inside = members[0].map((_, label) => {
    const stranger = members.reduce((sum, own, k) => sum + below(scores[k], 1 - own[label]), 0);
    return stranger < coverage * (photos + 1) * (1 - 1e-12);
  });
  let familiar = 1;
  members.forEach((own, k) => {
    const doubt = -own.reduce((sum, p) => sum + p * Math.log(Math.max(p, Number.MIN_VALUE)), 0);
    familiar += doubts[k].length - below(doubts[k], doubt);
  });
  return { inside, familiarity: familiar / (photos + 1) };
}

async function look(file) {
  const { session, about, known } = ready;
  const image = await pixels(file);
  const found = await session.run({ image });
  const probabilities = Array.from(found.probabilities.data);
  const size = probabilities.length;
  const members = about.members.map((_, k) =>
    softmax(found.logits.data.subarray(k * size, (k + 1) * size), about.temperature));
  const { inside, familiarity } = judged(members, known, about.coverage);
  const order = probabilities.map((_, label) => label).sort((a, b) => probabilities[b] - probabilities[a]);
  const [, height, width] = image.dims;
  const answer = {
    status: Math.min(width, height) < about.too_small ? `too small: ${width} × ${height} pixels` : "ok",
    classes: order.slice(0, TOP).map((n) => ({ class: about.classes[n], probability: probabilities[n] })),
    set: order.filter((label) => inside[label]).map((label) => about.classes[label]),
  };
  if (known.doubts[0].length) Object.assign(answer, { familiarity, unknown: familiarity <= about.alarm });
  for (const tensor of Object.values(found)) tensor.dispose();
  return answer;
}

self.addEventListener("message", async ({ data: { number, file } }) => {
  try {
    ready ??= await start();
    self.postMessage({ number, found: file ? await look(file) : ready.about });
  } catch (error) {
    self.postMessage({ number, error: error.message || String(error) });
  }
});
