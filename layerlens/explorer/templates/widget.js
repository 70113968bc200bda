// The widget of an explorer: its page in a frame that cannot reach the notebook. They talk through a port, and only
// about what is selected, which Python checks.
"use strict";

/** @param {{model: any, el: HTMLElement}} shown */
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = model.get("title");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.style.cssText = `width: 100%; height: ${model.get("height")}px; border: 1px solid #8888`;
  frame.srcdoc = model.get("page");
  /** @type {MessagePort | null} */
  let port = null;
  let known = "";
  const show = () => {
    const selected = JSON.stringify(model.get("selected"));
    if (port && selected !== known) port.postMessage(model.get("selected"));
    known = selected;
  };
  const connect = () => { // the page opens again when a notebook moves its frame
    const channel = new MessageChannel();
    port?.close();
    [port, known] = [channel.port1, ""];
    port.onmessage = ({ data }) => {
      known = JSON.stringify(data);
      model.set("selected", data);
      model.save_changes();
    };
    frame.contentWindow?.postMessage("follow", "*", [channel.port2]);
    show();
  };
  frame.addEventListener("load", connect);
  model.on("change:selected", show);
  el.append(frame);
  return () => {
    model.off("change:selected", show);
    port?.close();
  };
}

export default { render };
