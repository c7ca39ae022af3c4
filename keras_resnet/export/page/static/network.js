// An exported ONNX file in ONNX Runtime Web.

import { roundHalfToEven } from "./pixels.js";
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

/**
 * An opened file.
 *
 * `input` has the height and width of the images, undefined where any size fits, and their channels; `labels` the
 * names of the classes, or none; `bytes` is the file's size, `seconds` the time that it took to open.
 */
export class Network {
  #session;
  #channelsFirst;

  constructor(session, metadata, bytes, seconds) {
    this.#session = session;
    this.#channelsFirst = metadata.layout === "nchw";
    this.labels = JSON.parse(metadata.labels ?? "[]");
    this.bytes = bytes;
    this.seconds = seconds;
    const [, ...sides] = session.inputMetadata[0].shape;
    const [height, width, channels] = this.#channelsFirst ? [sides[1], sides[2], sides[0]] : sides;
    const known = (side) => (typeof side === "number" && side > 0 ? side : undefined);
    this.input = { height: known(height), width: known(width), channels };
  }

  static async open(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const metadata = readMetadata(bytes);
    const began = performance.now();
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    return new Network(session, metadata, bytes.length, (performance.now() - began) / 1000);
  }

  /** Runs the network on an image of `prepare`; returns {logits, probabilities, milliseconds}. */
  async run(pixels, { height, width, channels }) {
    const { name, type } = this.#session.inputMetadata[0];
    const ordered = this.#channelsFirst ? toChannelsFirst(pixels, channels) : pixels;
    const data = type === "uint8" ? Uint8Array.from(ordered, roundHalfToEven) : ordered;
    const dims = this.#channelsFirst ? [1, channels, height, width] : [1, height, width, channels];
    const images = new ort.Tensor(type, data, dims);
    const began = performance.now();
    const { logits, probabilities } = await this.#session.run({ [name]: images });
    const milliseconds = performance.now() - began;
    return { logits: [...logits.data], probabilities: [...probabilities.data], milliseconds };
  }

  /** The name of a class. */
  label(index) {
    return this.labels[index] ?? `class ${index}`;
  }

  async close() {
    await this.#session.release();
  }
}

function toChannelsFirst(pixels, channels) {
  const area = pixels.length / channels;
  return Float32Array.from(pixels, (_, i) => pixels[(i % area) * channels + Math.floor(i / area)]);
}

/** Reads the metadata_props of an ONNX file, which ONNX Runtime Web does not give. */
export function readMetadata(bytes) {
  const text = new TextDecoder();
  const found = {};
  for (const [number, start, end] of parts(bytes, 0, bytes.length)) {
    if (number !== 14) continue; // ModelProto.metadata_props
    const entry = {};
    for (const [field, from, to] of parts(bytes, start, end)) entry[field] = text.decode(bytes.subarray(from, to));
    found[entry[1]] = entry[2] ?? ""; // StringStringEntryProto: key, value
  }
  return found;
}

/** The parts of a protobuf message that have a length: the number of the field, start and end. */
function* parts(bytes, start, end) {
  let at = start;
  const integer = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (!(byte & 128)) return value;
    }
  };
  while (at < end) {
    const key = integer();
    const type = key % 8;
    if (type === 0) integer();
    else if (type === 1) at += 8;
    else if (type === 5) at += 4;
    else if (type === 2) {
      const length = integer();
      yield [Math.floor(key / 8), at, at + length];
      at += length;
    } else throw new Error("this is not an ONNX file");
  }
}
