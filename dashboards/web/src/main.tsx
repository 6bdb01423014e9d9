import { render } from "preact";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/runs.css";
import "./styles/forms.css";
import { App } from "./app";
import { arrive } from "./session";
import { followHistory } from "./url";

followHistory();
void arrive();
render(<App />, document.getElementById("app")!);
