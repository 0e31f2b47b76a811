// Drawing on a picture: from a pointer's path to a region in pixels of the original, and from a region to the canvas.
// Whole numbers are the middles of pixels, as for the server, which draws the same marks for the model.

const LEAST = 5; // a box with shorter sides, in pixels of the screen, is a slip of the hand
const HEAD_ANGLE = Math.PI / 3; // of an arrow, as in visual_prompts/shapes.py

function boundsOf(points) {
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

// A path with few points that is nowhere farther than `away` from that of all points (Douglas and Peucker).
function simplify(points, away) {
  if (points.length < 3) return points;
  const [start, end] = [points[0], points[points.length - 1]];
  let farthest = 0, at = 0;
  points.forEach((point, index) => {
    const distance = distanceToLine(point, start, end);
    if (distance > farthest) [farthest, at] = [distance, index];
  });
  if (farthest <= away) return [start, end];
  return [...simplify(points.slice(0, at + 1), away).slice(0, -1), ...simplify(points.slice(at), away)];
}

function distanceToLine([x, y], [x1, y1], [x2, y2]) {
  const length = Math.hypot(x2 - x1, y2 - y1);
  if (length === 0) return Math.hypot(x - x1, y - y1);
  return Math.abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length;
}

// The region that a path of the pointer means, or null for a slip. `pixel`: a pixel of the screen, in the picture's.
function regionOf(shape, color, path, pixel) {
  const rounded = (points) => points.flat().map((value) => Math.round(value * 10) / 10);
  const region = {shape, color}, first = path[0], last = path[path.length - 1];
  const [left, top, right, bottom] = boundsOf([first, last]);
  const isSmall = right - left < LEAST * pixel && bottom - top < LEAST * pixel;
  if (shape === 'point') return {...region, bbox: rounded([last, last])};
  if (shape === 'scribble') return {...region, strokes: [rounded(simplify(path, pixel / 2))]};
  if (shape === 'mask' || shape === 'mask contour') {
    const [l, t, r, b] = boundsOf(path), outline = simplify(path, pixel / 2);
    if (outline.length < 3 || (r - l < LEAST * pixel && b - t < LEAST * pixel)) return null;
    return {...region, polygon: rounded(outline)};
  }
  if (isSmall) return null;
  if (shape === 'arrow') return {...region, strokes: [rounded([first, last])]};
  if (shape === 'triangle') {
    return {...region, strokes: [rounded([[left, bottom], [(left + right) / 2, top], [right, bottom]])]};
  }
  return {...region, bbox: rounded([[left, top], [right, bottom]])};
}

function pairs(flat) {
  return Array.from({length: flat.length / 2}, (_, index) => [flat[2 * index], flat[2 * index + 1]]);
}

// Draw a region opaquely, in the picture's pixels. `width`: of its lines, or a point's radius.
function sketch(pen, region, width) {
  const {shape, bbox, polygon, strokes} = region;
  pen.strokeStyle = pen.fillStyle = region.color;
  pen.lineWidth = width;
  pen.lineCap = pen.lineJoin = 'round';
  pen.beginPath();
  if (bbox && shape === 'rectangle') {
    pen.lineJoin = 'miter';
    const inset = width / 2 - 0.5; // the line lies inside of the box
    pen.strokeRect(
      bbox[0] + inset, bbox[1] + inset, Math.max(bbox[2] - bbox[0] - 2 * inset, 0), Math.max(bbox[3] - bbox[1] - 2 * inset, 0),
    );
  } else if (bbox) {
    const radius = shape === 'point' ? [width, width] : [(bbox[2] - bbox[0] - width + 1) / 2, (bbox[3] - bbox[1] - width + 1) / 2];
    pen.ellipse((bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2, ...radius.map((r) => Math.max(r, 0)), 0, 0, 2 * Math.PI);
    shape === 'point' ? pen.fill() : pen.stroke();
  } else if (polygon && shape === 'mask contour') {
    sweepSquare(pen, pairs(polygon), width + 0.5);
  } else if (polygon) {
    pairs(polygon).forEach((point) => pen.lineTo(...point));
    pen.closePath();
    pen.fill();
  } else if (shape === 'arrow') {
    sketchArrow(pen, ...pairs(strokes[0]), region.scale);
  } else {
    for (const stroke of strokes) {
      const points = pairs(stroke);
      pen.moveTo(...points[0]);
      points.forEach((point) => pen.lineTo(...point));
      if (shape === 'triangle') pen.closePath();
    }
    pen.stroke();
  }
}

// A closed line of a square brush that reaches `reach` to each side.
function sweepSquare(pen, points, reach) {
  const corners = [[-reach, -reach], [reach, -reach], [reach, reach], [-reach, reach]];
  const fill = (path) => { pen.beginPath(); path.forEach((point) => pen.lineTo(...point)); pen.fill(); };
  points.forEach(([x, y], index) => {
    const [nextX, nextY] = points[(index + 1) % points.length];
    fill(corners.map(([dx, dy]) => [x + dx, y + dy]));
    corners.forEach(([dx, dy], corner) => {
      const [ex, ey] = corners[(corner + 1) % 4];
      fill([[x + dx, y + dy], [x + ex, y + ey], [nextX + ex, nextY + ey], [nextX + dx, nextY + dy]]);
    });
  });
}

// As `_arrow_along` of visual_prompts/shapes.py.
function sketchArrow(pen, tail, tip, scale) {
  const length = Math.hypot(tip[0] - tail[0], tip[1] - tail[1]);
  const head = Math.min(Math.max(0.35 * length, 6 * scale, 1), 12 * scale);
  const angle = Math.atan2(tail[1] - tip[1], tail[0] - tip[0]);
  const away = (turn, distance) => [tip[0] + distance * Math.cos(angle + turn), tip[1] + distance * Math.sin(angle + turn)];
  pen.moveTo(...away(0, head / 2));
  pen.lineTo(...tail);
  pen.stroke();
  pen.beginPath();
  [tip, away(-HEAD_ANGLE, head), away(HEAD_ANGLE, head)].forEach((point) => pen.lineTo(...point));
  pen.fill();
}
