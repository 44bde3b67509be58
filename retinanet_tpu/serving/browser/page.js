"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const {names, threshold} = JSON.parse(find("settings").textContent);
  const shots = find("shots");
  const slider = find("score");
  const MAX_SHOWN = 1280;  // px; larger images would take 4 bytes per pixel for ever.

  const show = (text, isError) => {
    find("status").textContent = text;
    find("status").classList.toggle("bad", isError);
  };
  let state = [find("status").textContent, false];  // Of the model.
  const report = (text, isError) => {
    state = [text, isError];
    show(text, isError);
  };
  // Errors of WebAssembly may be numbers.
  const reason = (error) => String(error?.message ?? error);

  // The bytes of an element: base64 of gzip.
  const unpack = async (id) => {
    const element = find(id);
    const binary = atob(element.textContent);
    element.remove();  // Frees its text.
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const start = async () => {
    const begin = performance.now();
    if (typeof WebAssembly !== "object" || typeof DecompressionStream !== "function") {
      throw new Error("this browser is too old. Use Chrome 103, Edge 103, "
        + "Firefox 113, Safari 16.4 or newer");
    }
    const module = new Blob([await unpack("runtime-module")], {type: "text/javascript"});
    ort.env.wasm.numThreads = 1;  // Threads need a server that isolates the page.
    ort.env.wasm.wasmPaths = {mjs: URL.createObjectURL(module)};
    ort.env.wasm.wasmBinary = await unpack("runtime");
    const model = await unpack("model");
    const options = {executionProviders: ["wasm"], logSeverityLevel: 3};
    const session = await ort.InferenceSession.create(model, options);
    const secs = ((performance.now() - begin) / 1000).toFixed(1);
    report(`The model is ready. Loading took ${secs} s.`, false);
    return session;
  };

  // The pixels of a file as the model reads them, and a canvas that shows them. A
  // browser rotates by EXIF, like `predict`; colors are not converted there either.
  const decode = async (file) => {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, {colorSpaceConversion: "none"});
    } catch {
      throw new Error("this browser cannot decode it as an image");
    }
    const {width, height} = bitmap;
    const draw = (scale) => {
      const canvas = document.createElement("canvas");
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
      const context = canvas.getContext("2d", {willReadFrequently: scale === 1});
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      return {canvas, context};
    };
    const whole = draw(1);
    const {data} = whole.context.getImageData(0, 0, width, height);
    const pixels = new Uint8Array(width * height * 3);
    for (let from = 0, to = 0; from < data.length; from += 4) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
    const side = Math.max(width, height);
    const {canvas} = side > MAX_SHOWN ? draw(MAX_SHOWN / side) : whole;
    bitmap.close();
    return {canvas, pixels, width, height};
  };

  const colors = new Map(Object.keys(names).map((id, i) =>
    [id, `hsl(${Math.round(i * 137.5 + 140) % 360} 90% 70%)`]));

  const makeBox = (image, [left, top, right, bottom], score, id) => {
    const box = document.createElement("div");
    const name = names[id] ?? `class ${id}`;
    box.className = "box";
    // Labels are above their box, from its left side, where the image has room.
    box.classList.toggle("top", top < 0.06 * image.height);
    box.classList.toggle("right", left > 0.6 * image.width);
    Object.assign(box.dataset, {score, name, id});
    const place = (key, value, size) => { box.style[key] = `${100 * value / size}%`; };
    place("left", left, image.width);
    place("top", top, image.height);
    place("width", right - left, image.width);
    place("height", bottom - top, image.height);
    box.style.setProperty("--color", colors.get(String(id)) ?? "#fff");
    const label = document.createElement("span");
    label.textContent = `${name} ${score.toFixed(2)}`;
    box.append(label);
    return box;
  };

  const apply = () => {
    const score = +slider.value;
    find("score-text").textContent = score.toFixed(2);
    for (const shot of shots.querySelectorAll("figure[data-text]")) {
      const boxes = shot.querySelectorAll(".box");
      let count = 0;
      for (const box of boxes) {
        const isShown = +box.dataset.score >= score;
        box.classList.toggle("hidden", !isShown);
        count += isShown;
      }
      shot.querySelector("span.count").textContent =
        ` ${shot.dataset.text}, ${count} of ${boxes.length} detections`;
    }
  };

  const detect = async (session, file, shot) => {
    const image = await decode(file);
    const {width, height} = image;
    const images = new ort.Tensor("uint8", image.pixels, [1, height, width, 3]);
    const begin = performance.now();
    let outputs;
    try {
      outputs = await session.run({images});
    } catch (error) {
      throw new Error(`the model failed (${reason(error)}). ${width} x ${height} px may `
        + "be too large for the browser's memory; reload the page and use smaller images");
    }
    const millis = performance.now() - begin;
    const stage = document.createElement("div");
    stage.className = "stage";
    stage.append(image.canvas);
    // The best are last, and so cover the others.
    for (let i = outputs.valid_detections.data[0] - 1; i >= 0; i--) {
      const id = outputs.class_ids.data[i];
      if (id < 0) continue;  // An output of the network without a class.
      const box = outputs.boxes_xyxy.data.subarray(4 * i, 4 * i + 4);
      stage.append(makeBox(image, box, outputs.scores.data[i], id));
    }
    shot.prepend(stage);
    shot.dataset.millis = millis;
    shot.dataset.text = `${width} x ${height} px, ${Math.round(millis)} ms`;
  };

  const session = start();
  session.catch((error) =>
    report(`The model cannot be loaded: ${reason(error)}.`, true));

  const process = async (file, shot) => {
    const count = shot.querySelector("span.count");
    try {
      const loaded = await session;
      // The model blocks the page, so earlier results must be painted first.
      await new Promise((resolve) => setTimeout(resolve, 20));
      await detect(loaded, file, shot);
      apply();
    } catch (error) {
      count.textContent = ` ${reason(error)}.`;
      count.classList.add("bad");
    }
  };

  let queue = Promise.resolve();
  const add = (files) => {
    if (files.length) show(...state);
    else show("There was no file. Drop image files.", true);
    for (const file of files) {
      const shot = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const name = document.createElement("b");
      const count = document.createElement("span");
      name.textContent = file.name;
      count.className = "count";
      count.textContent = " waiting";
      caption.append(name, count);
      shot.append(caption);
      shots.append(shot);
      queue = queue.then(() => shot.isConnected && process(file, shot));
    }
  };

  find("files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = "";  // The same file may be chosen again.
  });
  const dragging = (isOver) => (event) => {
    event.preventDefault();  // A browser would open the file instead of this page.
    document.body.classList.toggle("dragging", isOver);
  };
  addEventListener("dragover", dragging(true));
  addEventListener("dragleave", dragging(false));
  addEventListener("drop", (event) => {
    dragging(false)(event);
    add([...event.dataTransfer.files]);
  });
  slider.value = threshold;
  slider.addEventListener("input", apply);
  find("labels").addEventListener("change", (event) =>
    shots.classList.toggle("unlabeled", !event.target.checked));
  find("clear").addEventListener("click", () => shots.replaceChildren());
  apply();
})();
