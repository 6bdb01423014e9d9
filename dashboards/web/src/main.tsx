import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/runs.css";
import "./styles/run.css";
import "./styles/charts.css";
import "./styles/forms.css";
import { App } from "./app";
import { arrive } from "./session";
import { followHistory } from "./url";

followHistory();
void arrive();
render(<App />, document.getElementById("app")!);
