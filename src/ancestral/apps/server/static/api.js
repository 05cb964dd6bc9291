// What the server offers: single calls, jobs whose events are streamed, and word of whether it is there.

const PAUSES = [500, 1000, 2000, 4000]; // milliseconds between looks for a server that is gone
const GONE = "The server does not answer; it is looked for, try again when it is back";

const pause = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

// Fires "change" when the server goes or comes back; `there` says whether it answered last.
class Server extends EventTarget {
  there = true;

  lost() {
    if (!this.there) return;
    this.#turn(false);
    this.#look();
  }

  found() {
    if (!this.there) this.#turn(true);
  }

  #turn(there) {
    this.there = there;
    this.dispatchEvent(new Event("change"));
  }

  async #look() {
    for (let tries = 0; !this.there; tries++) {
      await pause(PAUSES[Math.min(tries, PAUSES.length - 1)]);
      const answer = await fetch("api/model").catch(() => null);
      if (answer) this.found(); // even if it refuses: it says why when it is next asked
    }
  }
}

export const server = new Server();

class Refused extends Error {
  constructor(detail, seconds) {
    super(detail);
    this.seconds = seconds; // to wait, where the server says that it is busy
  }
}

export async function call(method, path, body) {
  const headers = body && { "Content-Type": "application/json" };
  const answer = await fetch(`api/${path}`, { method, headers, body: body && JSON.stringify(body) }).catch(() => {
    server.lost();
    throw new Error(GONE);
  });
  server.found();
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const wait = Number(answer.headers.get("Retry-After")) || (answer.status === 429 ? 2 : undefined);
  throw new Refused(content.detail ?? `The server answered ${answer.status}`, wait);
}

// As `call`, but a server that is busy is asked again after the time it names; `waiting` hears the seconds left, and
// `signal` ends the waiting, never a request under way: its job would be forgotten here and run on there.
export async function patiently(method, path, body, waiting, signal) {
  for (;;) {
    try {
      return await call(method, path, body);
    } catch (error) {
      if (error.seconds === undefined) throw error;
      for (let left = Math.ceil(error.seconds); left > 0; left--) {
        waiting(left);
        await pause(1000, signal);
      }
    }
  }
}

// One of the long pieces of work. `on` has waiting, accepted, queued, step, done, failed, cancelled and lost.
export class Job {
  #abort = new AbortController();
  #source;
  #id;

  constructor(on) {
    this.on = on;
  }

  static begun(path, body, on) {
    const job = new Job(on);
    job.#start(path, body);
    return job;
  }

  // One that was begun before, by its name.
  static joined(id, on) {
    const job = new Job(on);
    job.#id = id;
    job.#listen();
    return job;
  }

  async #start(path, body) {
    try {
      const { job, place } = await patiently("POST", path, body, this.on.waiting, this.#abort.signal);
      this.#id = job;
      this.on.accepted?.(job);
      if (this.#abort.signal.aborted) return await this.#forget();
      this.on.queued({ place });
      this.#listen();
    } catch (error) {
      if (error.name === "AbortError") this.on.cancelled();
      else this.on.failed(error.message);
    }
  }

  #listen() {
    const source = (this.#source = new EventSource(`api/jobs/${this.#id}/events`));
    const end = (finish) => {
      source.close();
      finish();
    };
    source.addEventListener("open", () => server.found());
    for (const name of ["queued", "step"]) source.addEventListener(name, (event) => this.on[name](JSON.parse(event.data)));
    for (const name of ["done", "cancelled"])
      source.addEventListener(name, (event) => end(() => this.on[name](JSON.parse(event.data))));
    source.addEventListener("error", (event) => {
      // The server's own "error" carries data; the stream's, when it breaks, does not.
      if (event.data !== undefined) end(() => this.on.failed(JSON.parse(event.data).detail));
      else if (source.readyState === EventSource.CLOSED) this.#refused();
      else {
        server.lost();
        this.on.lost();
      }
    });
  }

  // The stream was answered with something else: the job is gone, or too many streams are open just now.
  async #refused() {
    try {
      await call("GET", `jobs/${this.#id}`);
      this.on.lost();
      await pause(PAUSES[1], this.#abort.signal);
      this.#listen();
    } catch (error) {
      if (error.name !== "AbortError")
        this.on.failed("The server no longer knows this job, it was started anew; run it again");
    }
  }

  async cancel() {
    const { aborted } = this.#abort.signal;
    this.#abort.abort();
    if (!aborted && this.#id !== undefined) await this.#forget();
  }

  // The server forgets the job with that, perhaps before its stream was open: nothing more is waited for.
  async #forget() {
    this.#source?.close();
    try {
      await call("DELETE", `jobs/${this.#id}`);
      this.on.cancelled();
    } catch (error) {
      this.on.failed(error.message);
    }
  }
}
