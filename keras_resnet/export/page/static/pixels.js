// From an image to a network's input, by the rule that the accuracy of the exported files was measured with:
// resizing with half-pixel centers, antialiased when shrinking, and a center crop.

const MOST_PIXELS = 89e6;
const STRIP = 4e6; // Pixels that are read at once: some browsers limit the area of a canvas.

const KERNELS = {
  bilinear: { radius: 1, weight: (x) => (x < 1 ? 1 - x : 0) },
  bicubic: {
    radius: 2,
    weight: (x) => {
      if (x >= 2) return 0;
      return x >= 1 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : (1.5 * x - 2.5) * x * x + 1;
    },
  },
};

/**
 * Decodes an image file: upright by its Exif tag, without color management, transparent parts on white.
 * Returns {width, height, data}, with the bytes of red, green, blue and alpha of each pixel.
 */
export async function decode(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("the browser cannot decode this file as an image");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw new Error(`the image has more than ${MOST_PIXELS / 1e6} million pixels`);
  const data = new Uint8ClampedArray(4 * width * height);
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, rows];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  for (let top = 0; top < height; top += rows) {
    pen.fillRect(0, 0, width, rows);
    pen.drawImage(bitmap, 0, -top);
    const part = pen.getImageData(0, 0, width, Math.min(rows, height - top));
    data.set(part.data, 4 * width * top);
  }
  bitmap.close();
  return { width, height, data };
}

/** Copies a part of an image of `decode`. */
export function cut(image, left, width) {
  const data = new Uint8ClampedArray(4 * width * image.height);
  for (let row = 0; row < image.height; row++) {
    const from = 4 * (row * image.width + left);
    data.set(image.data.subarray(from, from + 4 * width), 4 * row * width);
  }
  return { width, height: image.height, data };
}

/**
 * Resizes and crops an image to a network's input.
 *
 * `resize` is the length of the shorter side before the center crop, or null to resize the whole image.
 * Returns a Float32Array (height, width, channels), 0 to 255; three channels, or one.
 */
export function prepare(image, { height, width, channels, resize, interpolation }) {
  const sides = [image.height, image.width];
  const sizes = [height, width];
  const shorter = Math.min(...sides);
  // The longer side is truncated.
  const resized = sides.map((side, axis) => (resize ? Math.floor((side * resize) / shorter) : sizes[axis]));
  const [rows, columns] = sizes.map((size, axis) => {
    const corner = resize ? roundHalfToEven((resized[axis] - size) / 2) : 0;
    return spans(sides[axis], resized[axis], corner, size, KERNELS[interpolation]);
  });
  const colors = resampleColumns(resampleRows(image, rows), image.width, columns, height);
  if (interpolation === "bicubic") {
    for (let i = 0; i < colors.length; i++) colors[i] = Math.min(255, Math.max(0, colors[i])); // it overshoots
  }
  return channels === 1 ? toGray(colors, isGray(image)) : colors;
}

export function roundHalfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

/** For each resampled pixel of an axis, the first pixel that contributes and the weights from there on. */
function spans(length, resized, corner, size, kernel) {
  const step = length / resized;
  const stretch = Math.max(step, 1);
  const reach = kernel.radius * stretch;
  const clamp = (index) => Math.min(length - 1, Math.max(0, index));
  return Array.from({ length: size }, (_, index) => {
    const center = (index + 0.5 + corner) * step;
    const first = clamp(Math.ceil(center - reach - 0.5));
    const last = clamp(Math.floor(center + reach - 0.5));
    const weights = new Float64Array(last - first + 1);
    for (let i = 0; i < weights.length; i++) weights[i] = kernel.weight(Math.abs(first + i + 0.5 - center) / stretch);
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Resamples the heights of an RGBA image; returns RGB rows, (rows, width, 3). */
function resampleRows(image, rows) {
  const result = new Float32Array(rows.length * image.width * 3);
  const sums = new Float64Array(image.width * 3);
  rows.forEach(({ first, weights }, row) => {
    sums.fill(0);
    weights.forEach((weight, i) => {
      if (weight === 0) return;
      let from = (first + i) * image.width * 4;
      for (let to = 0; to < sums.length; from++) {
        for (let color = 0; color < 3; color++) sums[to++] += weight * image.data[from++];
      }
    });
    result.set(sums, row * sums.length);
  });
  return result;
}

/** Resamples the widths of (height, width, 3); returns (height, columns, 3). */
function resampleColumns(colors, width, columns, height) {
  const result = new Float32Array(height * columns.length * 3);
  let to = 0;
  for (let row = 0; row < height; row++) {
    for (const { first, weights } of columns) {
      const from = (row * width + first) * 3;
      for (let color = 0; color < 3; color++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * colors[from + 3 * i + color];
        result[to++] = sum;
      }
    }
  }
  return result;
}

function isGray({ data }) {
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
  }
  return true;
}

/** The luma of colors; the values of gray images are kept, because the luma's weights do not sum to one. */
function toGray(colors, areEqual) {
  return Float32Array.from({ length: colors.length / 3 }, (_, i) => {
    const [red, green, blue] = colors.subarray(3 * i, 3 * i + 3);
    return areEqual ? red : 0.2989 * red + 0.587 * green + 0.114 * blue;
  });
}
