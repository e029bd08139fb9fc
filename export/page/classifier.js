// Classifies photographs by the networks of networks.json. page.js uses it, and so can any other page.
import * as ort from './ort.js';

ort.env.wasm.numThreads = 1;        // several threads need a server with headers that isolate the page

const beside = (name) => new URL(name, import.meta.url).href;

async function load(name) {
  const response = await fetch(beside(name));
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  return response;
}

// The networks of networks.json: role, name, file, dtype, classes, inputs, and a session that runs the file.
export async function openNetworks() {
  const networks = await (await load('networks.json')).json();
  for (const network of networks) {
    const content = new Uint8Array(await (await load(network.file)).arrayBuffer());
    network.session = await ort.InferenceSession.create(content);
  }
  return networks;
}

// The pixels of an image file (Blob) or of a video element, as ImageData. The image is upright, in the colours of the
// file: scripts/predict.py ignores colour profiles too.
export async function readPixels(source) {
  const bitmap = await createImageBitmap(source, {
    imageOrientation: 'from-image', premultiplyAlpha: 'none', colorSpaceConversion: 'none',
  });
  const canvas = document.createElement('canvas');
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// The `count` most probable classes of an image, {name, probability}, and the milliseconds of the network alone.
export async function classify(network, image, count = 5) {
  const { classes, dtype, inputs, session } = network;
  const square = toSquare(image, inputs);
  const pixels = dtype === 'uint8' ? new Uint8Array(square.buffer) : Float32Array.from(square, (value) => value / 255);
  const images = new ort.Tensor(dtype, pixels, [1, 3, inputs.size, inputs.size]);
  const start = performance.now();
  const { logits } = await session.run({ images });
  const milliseconds = performance.now() - start;
  const top = softmax(logits.data).map((probability, label) => ({ name: classes[label], probability }))
    .sort((a, b) => b.probability - a.probability).slice(0, count);
  return { top, milliseconds };
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const values = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = values.reduce((a, b) => a + b);
  return values.map((value) => value / sum);
}

// Preprocessing: the pixels are those of dataset/crop.py with Pillow, because the arithmetic is the same: weights of 22
// bits, both passes rounded to 8 bits. A browser's own scaling gives other pixels. Pillow 13 scales some tall images
// down before across, and then rounds some values to a neighbour.

const kernels = {
  nearest: null,
  bilinear: { radius: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { radius: 2, weight: cubic },
};

// Cubic convolution with a = -0.5 (Keys, 1981).
function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? -0.5 * (((t - 5) * t + 8) * t - 4) : 0;
}

// ImageData -> (3, size, size) of 0 to 255: the square that the network takes.
export function toSquare(image, inputs) {
  const [across, down] = [image.width, image.height].map((side) => placeSide(side, image, inputs));
  const { size } = inputs;
  const used = down.filter((tap) => tap.weights.length);
  const top = used[0].start, bottom = used.at(-1).start + used.at(-1).weights.length;
  const rows = new Uint8ClampedArray((bottom - top) * size * 3);        // scaled across only; the array clips
  for (let y = top, to = 0; y < bottom; y++) {
    for (const { start, weights } of across) {
      let red = 0, green = 0, blue = 0, from = (y * image.width + start) * 4;
      for (const weight of weights) {
        red += weight * image.data[from];
        green += weight * image.data[from + 1];
        blue += weight * image.data[from + 2];
        from += 4;
      }
      rows[to++] = Math.floor(red + 0.5);
      rows[to++] = Math.floor(green + 0.5);
      rows[to++] = Math.floor(blue + 0.5);
    }
  }
  const square = new Uint8ClampedArray(3 * size * size);
  for (let colour = 0, to = 0; colour < 3; colour++) {
    for (const { start, weights } of down) {
      for (let x = 0; x < size; x++) {
        let sum = 0, from = ((start - top) * size + x) * 3 + colour;
        for (const weight of weights) {
          sum += weight * rows[from];
          from += size * 3;
        }
        square[to++] = Math.floor(sum + 0.5);
      }
    }
  }
  return square;
}

// The taps of one side of the square, from a side of the image in pixels. A rule for each --fit.
function placeSide(side, { width, height }, { size, fit, crop_pct: share, interpolation }) {
  const kernel = kernels[interpolation];
  const longer = Math.max(width, height), shorter = Math.min(width, height);
  if (fit === 'squash') return makeTaps(side, 0, side, size, kernel);
  if (fit === 'pad') {
    const scaled = Math.max(1, round(side * size / longer)), before = Math.floor((size - scaled) / 2);
    return [...black(before), ...makeTaps(side, 0, side, scaled, kernel), ...black(size - scaled - before)];
  }
  if (share === 1 || longer > 20 * shorter) {
    const first = (side - share * shorter) / 2;
    return makeTaps(side, first, first + share * shorter, size, kernel);
  }
  const scaled = Math.floor(round(size / share) * side / shorter), first = round((scaled - size) / 2);
  return makeTaps(side, 0, side, scaled, kernel).slice(first, first + size);
}

// The weighted pixels of which each of `count` outputs is the sum, {start, weights}: the outputs cover the pixels
// `first` to `last` of a side. When an image shrinks, the kernel widens, so that every pixel counts (antialiasing).
function makeTaps(side, first, last, count, kernel) {
  const left = Math.fround(first), scale = Math.fround(Math.fround(last) - left) / count, taps = [];
  if (!kernel) {
    for (let centre = left + scale / 2; taps.length < count; centre += scale) {
      taps.push({ start: Math.floor(centre), weights: [1] });
    }
    return taps;
  }
  const stretch = Math.max(scale, 1), radius = kernel.radius * stretch;
  while (taps.length < count) {
    const centre = left + (taps.length + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - radius + 0.5)), end = Math.min(side, Math.trunc(centre + radius + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => kernel.weight((start + i - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b);
    taps.push({ start, weights: weights.map((weight) => Math.round(weight / sum * 2 ** 22) / 2 ** 22) });
  }
  return taps;
}

const black = (count) => Array.from({ length: count }, () => ({ start: 0, weights: [] }));

// To the nearest integer, halves to the even one, as Python's round.
const round = (x) => Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
