// *Draw it*: a board for a digit, and the two networks that read it. Nothing is loaded and nothing is sent.
"use strict";
{
  const root = document.getElementById("draw"), find = name => root.querySelector(`.${name}`);
  const data = JSON.parse(find("data").textContent);
  const SIDE = 28, BOX = 20, MIDDLE = 14.5, BOARD = 280, PEN = 22, FIELD = 5;  // in pixels; FIELD: of a filter

  // Numbers out of text: weights are in half precision, masks have one bit a weight, images one byte a pixel.
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const half = h => {
    const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024;
    return (h & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };
  const packed = bytes(data.weights);
  const original = new Float32Array(packed.length / 2).map((_, i) => half(packed[2 * i] + 256 * packed[2 * i + 1]));
  const bit = (bits, i) => bits[i >> 3] >> (7 - i & 7) & 1;

  // The parameters by name, of all weights that `mask` keeps; the others are zero.
  function network(mask) {
    const kept = mask ? original.map((w, i) => bit(mask, i) ? w : 0) : original, found = {};
    let start = 0;
    for (const [name, size] of data.sizes) found[name] = kept.subarray(start, start += size);
    return found;
  }
  const points = data.points.map(point => ({...point, net: network(point.mask && bytes(point.mask))}));

  // A convolution of 5x5, the larger of it and zero, and the largest of each 2x2. `x`: channels of side x side.
  // Whatever a weight of zero would be multiplied with is passed over; `work` counts the multiply-adds that are left.
  function convolve(x, side, pad, weight, bias, work) {
    const wide = side + 2 * pad, out = wide - FIELD + 1, half = out / 2, n = x.length / side ** 2;
    const framed = new Float32Array(n * wide * wide), pooled = new Float32Array(bias.length * half * half);
    for (let c = 0; c < n; c++)
      for (let row = 0; row < side; row++)
        framed.set(x.subarray((c * side + row) * side, (c * side + row + 1) * side),
                   (c * wide + row + pad) * wide + pad);
    for (let o = 0; o < bias.length; o++) {
      const sum = new Float32Array(out * out).fill(bias[o]);
      for (let k = 0; k < n * FIELD ** 2; k++) {
        const w = weight[o * n * FIELD ** 2 + k];
        if (w === 0) continue;
        const c = Math.floor(k / FIELD ** 2), down = Math.floor(k / FIELD) % FIELD, right = k % FIELD;
        for (let row = 0; row < out; row++)
          for (let column = 0, from = (c * wide + row + down) * wide + right, to = row * out; column < out; column++)
            sum[to + column] += w * framed[from + column];
        work.done += out * out;
      }
      for (let i = 0; i < out * out; i++) {
        const at = o * half * half + Math.floor(i / out / 2) * half + Math.floor(i % out / 2);
        pooled[at] = Math.max(pooled[at], sum[i]);
      }
    }
    return pooled;
  }

  function linear(x, weight, bias, work) {
    return Float32Array.from(bias, (b, o) => {
      for (let i = 0, w; i < x.length; i++)
        if ((w = weight[o * x.length + i]) !== 0) { b += w * x[i]; work.done++; }
      return b;
    });
  }

  // The ten logits of an image of 28x28 pixels in [0, 1].
  function logits(image, net, work) {
    let x = Float32Array.from(image, pixel => (pixel - data.mean) / data.deviation);
    x = convolve(x, SIDE, 2, net["conv1.weight"], net["conv1.bias"], work);
    x = convolve(x, SIDE / 2, 0, net["conv2.weight"], net["conv2.bias"], work);
    x = linear(x, net["fc1.weight"], net["fc1.bias"], work).map(value => Math.max(value, 0));
    return linear(x, net["fc2.weight"], net["fc2.bias"], work);
  }

  // What is said of an image at a point of the front: ten logits of the original, two of what is left (other, target).
  function answers(image, point) {
    const {net, scale, shift} = points[point], work = {done: 0};
    const ten = logits(image, net, work), others = ten.filter((_, i) => i !== data.target);
    const rest = Math.log(others.reduce((sum, z) => sum + Math.exp(z), 0) / others.length);
    const two = [rest, ten[data.target]].map((z, i) => z * scale[i] + shift[i]);
    return {original: [...logits(image, points[0].net, {done: 0})], two, work: work.done};
  }

  points[0].work = answers(new Float32Array(SIDE ** 2), 0).work;

  // What the networks see of `ink` on a board: as MNIST was made, the digit fills a box of 20x20 pixels, moved by whole
  // pixels until its centre of mass is nearest to the middle of 28x28. Null where there is no ink.
  function see(ink) {
    let left = BOARD, right = -1, top = BOARD, bottom = -1, mass = 0, x = 0, y = 0;
    ink.forEach((value, i) => {
      const column = i % BOARD, row = Math.floor(i / BOARD);
      mass += value, x += value * (column + 0.5), y += value * (row + 0.5);
      if (value < 0.2) return;
      left = Math.min(left, column), right = Math.max(right, column), top = Math.min(top, row), bottom = row;
    });
    if (right < 0) return null;
    const step = Math.max(right - left + 1, bottom - top + 1) / BOX, fine = 6;  // each pixel averages 6x6 places
    const start = (edge, centre) => edge - Math.round(MIDDLE - (centre / mass - edge) / step) * step;
    const x0 = start(left, x), y0 = start(top, y), place = (pixel, part) => (pixel + (part + 0.5) / fine) * step;
    return Float32Array.from({length: SIDE ** 2}, (_, i) => {
      let total = 0;
      for (let k = 0; k < fine ** 2; k++) {
        const column = Math.floor(x0 + place(i % SIDE, k % fine));
        const row = Math.floor(y0 + place(Math.floor(i / SIDE), Math.floor(k / fine)));
        if (Math.min(column, row) >= 0 && Math.max(column, row) < BOARD) total += ink[row * BOARD + column];
      }
      return total / fine ** 2;
    });
  }

  // From here on, the page.
  const board = find("board"), pen = board.getContext("2d", {willReadFrequently: true}), slider = find("slider");
  let seen = null, last = null, due = 0, told = 0;
  const percent = share => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
  const sum = list => list.reduce((a, b) => a + b), all = sum(data.sizes.map(([, size]) => size));
  const softmax = z => z.map(value => 1 / sum(z.map(other => Math.exp(other - value))));
  const a = digit => `${digit === 8 ? "an" : "a"} ${digit}`, kind = yes => (yes ? "" : "not ") + a(data.target);

  function picture(canvas, image) {
    const pixels = new ImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE ** 2; i++) pixels.data.set([...Array(3).fill(image ? 255 * image[i] : 0), 255], 4 * i);
    canvas.width = canvas.height = SIDE;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // Shares as the rows of a list: name, bar, number.
  function bars(list, shares, best) {
    shares.forEach((share, i) => {
      const [, bar, number] = find(list).children[i].children;
      find(list).children[i].classList.toggle("best", i === best);
      bar.firstElementChild.style.width = `${100 * share}%`;
      number.textContent = percent(share);
    });
  }

  // The first layer's filters: a square for each weight, which fades when it goes out.
  const first = points[0].net["conv1.weight"], largest = Math.max(...first.map(Math.abs));
  find("filters").innerHTML = `<span>${"<i></i>".repeat(FIELD ** 2)}</span>`.repeat(first.length / FIELD ** 2);
  const squares = root.querySelectorAll(".filters i");
  first.forEach((w, i) => { squares[i].className = w < 0 ? "minus" : "plus"; });

  // Draw all that depends on the board and the slider; say it in words once both have been still for a while.
  function show() {
    const {net, kept, accuracy} = points[slider.value];
    const {original: ten, two, work} = answers(seen || new Float32Array(SIDE ** 2), slider.value);
    const digit = ten.indexOf(Math.max(...ten)), yes = two[1] > two[0];
    const shares = seen ? softmax(ten) : ten.fill(0), [no, is] = seen ? softmax(two) : [0, 0];
    picture(find("seen"), seen);
    bars("ten", shares, seen ? digit : -1);
    bars("two", [is, no], seen ? Number(!yes) : -1);
    bars("layers", Object.values(net).filter((_, i) => i % 2 === 0).map(w => w.filter(Boolean).length / w.length));
    net["conv1.weight"].forEach((w, i) => { squares[i].style.opacity = w && 0.2 + 0.8 * Math.abs(w) / largest; });
    find("first").textContent = seen ? a(digit) : "nothing yet";
    find("second").textContent = seen ? kind(yes) : "nothing yet";
    find("kept").textContent = `${percent(kept)} of ${all.toLocaleString("en")}`;
    find("right").textContent = `${(100 * accuracy).toFixed(1)}% of ${data.tested}`;
    find("work").textContent = `${(work / 1e6).toFixed(2)} million, ${percent(work / points[0].work)}`;
    slider.setAttribute("aria-valuetext", `${percent(kept)} of the weights`);
    clearTimeout(told);
    told = setTimeout(() => {
      const facts = [...find("facts").children].map(fact => fact.innerText.replace("\n", ": ")).join(". ");
      find("said").textContent = (seen ? `The original says ${a(digit)}, ${percent(shares[digit])}. What is left ` +
        `says ${kind(yes)}, ${percent(yes ? is : no)}. ` : "The board is empty. ") + facts;
    }, 500);
  }

  // An image of 28x28 on the board, or an empty board.
  function put(image) {
    const small = document.createElement("canvas");
    picture(small, seen = image);
    pen.drawImage(small, 0, 0, BOARD, BOARD);
  }
  const soon = () => { cancelAnimationFrame(due); due = requestAnimationFrame(show); };

  function stroke(event) {
    const place = board.getBoundingClientRect();
    const to = [event.clientX - place.left, event.clientY - place.top].map(v => v * BOARD / place.width);
    Object.assign(pen, {strokeStyle: "white", lineWidth: PEN, lineCap: "round"});
    pen.beginPath();
    pen.moveTo(...last || to);
    pen.lineTo(...last = to);
    pen.stroke();
    const pixels = pen.getImageData(0, 0, BOARD, BOARD).data;
    seen = see(Float32Array.from({length: BOARD ** 2}, (_, i) => pixels[4 * i] / 255));
    soon();
  }
  board.addEventListener("pointerdown", event => { if (event.isPrimary && event.button === 0) stroke(event); });
  addEventListener("pointermove", event => { if (last && event.isPrimary) stroke(event); });
  for (const end of ["pointerup", "pointercancel", "blur"]) addEventListener(end, () => { last = null; });
  slider.max = points.length - 1;
  slider.addEventListener("input", soon);
  find("clear").addEventListener("click", () => { put(null); soon(); });
  data.digits.forEach(({digit, pixels, missed}) => {
    const image = Float32Array.from(bytes(pixels), value => value / 255), place = find(missed ? "missed" : "plain");
    place.insertAdjacentHTML("beforeend", `<button type="button" aria-label="${a(digit)}"><canvas></canvas></button>`);
    picture(place.lastElementChild.firstElementChild, image);
    place.lastElementChild.addEventListener("click", () => { put(image); soon(); });
    if (digit === data.begin && !missed) put(image);
  });
  Object.assign(root, {answers, see});  // for whoever checks them
  show();
}
