// A page that is opened as a file may start no worker, and the search is one: there it runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.frame.srcdoc =
        "<script>postMessage = (data) => frameElement.answer(data)</script>" + `<script src="${url}"></script>`;
      this.frame.addEventListener("load", () => {
        this.waiting.forEach((data) => this.tell(data));
        this.waiting = null;
      });
      document.body.append(this.frame);
    }
    tell(data) {
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.tell(data);
    }
  };
}
