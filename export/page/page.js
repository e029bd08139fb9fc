// The page: takes a photograph from a file, a drop or the camera, and shows the classes of each network.
import { classify, openNetworks, readPixels } from './classifier.js';

const find = (id) => document.getElementById(id);
const say = (text) => { find('status').textContent = text; };
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
const title = ({ role, name }) => `${role[0].toUpperCase()}${role.slice(1)} ${name}`;

// An element with children. Names of classes and files are untrusted: as children they are text, never markup.
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function makeTable(network, { top, milliseconds }) {
  const rows = top.map(({ name, probability }) => element('tr', {},
    element('th', { scope: 'row' }, name),
    element('td', { ariaHidden: 'true' }, element('progress', { max: 1, value: probability })),
    element('td', {}, percent(probability))));
  return element('table', {},
    element('caption', {}, `${title(network)} `, element('span', {}, `${milliseconds.toFixed(1)} ms`)),
    element('tbody', {}, ...rows));
}

function showPhotograph(pixels, name) {
  const canvas = find('photograph');
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  canvas.setAttribute('aria-label', name);
}

// source: an image file, or the video of the camera.
async function show(networks, source, name) {
  let pixels;
  try {
    pixels = await readPixels(source);
  } catch {
    say(`${name}: this browser cannot read it as an image; give a JPEG, PNG or WebP file`);
    return;
  }
  const answers = [];
  for (const network of networks) answers.push(await classify(network, pixels));
  showPhotograph(pixels, name);
  find('answers').replaceChildren(...networks.map((network, index) => makeTable(network, answers[index])));
  find('result').hidden = false;
  const best = networks.map(({ role }, index) => {
    const { name: label, probability } = answers[index].top[0];
    return `${role} ${label} ${percent(probability)}`;
  });
  say(`${name}: ${best.join(', ')}`);
}

async function startCamera() {
  try {
    find('video').srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    find('live').hidden = false;
    await find('video').play();       // until there is a picture to take
    find('take').focus();
  } catch (error) {
    say(`The camera cannot be used (${error.message}). It needs your permission, and a page of localhost or https.`);
  }
}

function stopCamera() {
  find('video').srcObject.getTracks().forEach((track) => track.stop());
  find('video').srcObject = null;
  find('live').hidden = true;
  find('camera').focus();
}

async function start() {
  say('Loading the network');
  const networks = await openNetworks();
  const blank = new ImageData(1, 1);
  for (const network of networks) await classify(network, blank);     // the first run of a network takes longer
  find('networks').textContent = networks.map((network) =>
    `${title(network)}: ${network.file}, ${network.classes.length} classes`).join('. ');

  let last = Promise.resolve();       // photographs are shown one after the other
  const enqueue = (source, name) => {
    last = last.then(() => show(networks, source, name)).catch((error) => say(`${name}: ${error.message}`));
  };
  find('file').addEventListener('change', ({ target }) => {
    for (const file of target.files) enqueue(file, file.name);
    target.value = '';        // so that the same file can be chosen again
  });
  document.addEventListener('drop', ({ dataTransfer }) => {
    for (const file of dataTransfer.files) enqueue(file, file.name);
  });
  find('camera').addEventListener('click', startCamera);
  find('take').addEventListener('click', () => enqueue(find('video'), 'Photograph of the camera'));
  find('stop').addEventListener('click', stopCamera);
  say('Ready: give a photograph');
}

// Without this, a browser opens a dropped file instead of the page.
for (const event of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(event, (dropped) => {
    dropped.preventDefault();
    document.body.classList.toggle('dragging', event === 'dragenter' || event === 'dragover');
  });
}

start().catch((error) => say(`The network cannot be loaded: ${error.message}`));
