// A canvas to draw on, with the pointer or the keyboard.

const WIDTH = 24;
const STEP = 8;
const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

/**
 * Makes a canvas a drawing pad, in white on black or, if `paper` is checked, in black on white.
 * `mark` shows the pen that the keyboard moves. Calls `changed` after each stroke.
 */
export function makePad({ canvas, mark, clear, paper, say, changed }) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let at = [canvas.width / 2, canvas.height / 2];
  let isDown = false; // the pen that the keyboard moves

  function moveTo(point) {
    at = point;
    [mark.style.left, mark.style.top] = [`${(100 * at[0]) / canvas.width}%`, `${(100 * at[1]) / canvas.height}%`];
  }

  function erase() {
    pen.fillStyle = paper.checked ? "#fff" : "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }

  function lineTo(point) {
    pen.strokeStyle = paper.checked ? "#000" : "#fff";
    [pen.lineWidth, pen.lineCap] = [WIDTH, "round"];
    pen.beginPath();
    pen.moveTo(...at);
    pen.lineTo(...point);
    pen.stroke();
    moveTo(point);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * canvas.width,
      ((event.clientY - box.top) / box.height) * canvas.height,
    ];
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    at = place(event);
    lineTo(at);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) lineTo(place(event));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, changed);
  }
  canvas.addEventListener("keydown", (event) => {
    if (event.key in MOVES) {
      const sizes = [canvas.width, canvas.height];
      const point = at.map((value, axis) => Math.min(sizes[axis], Math.max(0, value + MOVES[event.key][axis])));
      if (isDown) {
        lineTo(point);
        changed();
      } else moveTo(point);
    } else if (event.key === " ") {
      isDown = !isDown;
      mark.classList.toggle("down", isDown);
      say(isDown ? "The pen is down" : "The pen is up");
      if (isDown) {
        lineTo(at);
        changed();
      }
    } else if (event.key === "Delete") erase();
    else return;
    event.preventDefault();
  });
  clear.addEventListener("click", erase);
  paper.addEventListener("change", erase);
  erase();
  moveTo(at);
}
