// A click on a picture opens it at full size; Escape, a click or the button closes it.
"use strict";
(() => {
  const dialog = document.getElementById("full-size");
  const place = dialog.querySelector("div");
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const image = new Image();
      image.src = button.firstElementChild.src;
      image.alt = button.firstElementChild.alt;
      place.replaceChildren(image);
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
})();
