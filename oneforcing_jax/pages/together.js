// Plays some videos together: they start together, wait for each other at the end, and start again.
"use strict";

class Together {
  // `looked` is called each time that all have been played to the end.
  constructor(looked = () => {}) {
    this.videos = [];
    this.looked = looked;
    this.playing = true;
    setInterval(() => this.align(), 250);
  }

  // Takes other videos, waits until each can be played, and starts. Rejects with the first that cannot.
  async take(videos) {
    this.videos = videos;
    await Promise.all(videos.map((video) => this.ready(video)));
    if (this.videos !== videos) return;
    for (const video of videos) video.onended = () => this.ended();
    await this.restart();
  }

  ready(video) {
    return new Promise((done, failed) => {
      if (video.readyState >= 3) done();
      video.addEventListener("canplay", done, { once: true });
      video.addEventListener("error", () => failed(video), { once: true });
    });
  }

  ended() {
    if (!this.videos.every((video) => video.ended)) return;
    this.looked();
    if (this.playing) this.restart();
  }

  async restart() {
    for (const video of this.videos) video.currentTime = 0;
    if (this.playing) await this.play();
  }

  async play() {
    this.playing = true;
    // A browser that forbids playing shows the first frames; the button of the page starts them.
    await Promise.all(this.videos.map((video) => video.play().catch(() => {})));
  }

  pause() {
    this.playing = false;
    for (const video of this.videos) video.pause();
  }

  toggle() {
    if (this.playing) this.pause();
    else if (this.videos.every((video) => video.ended)) this.playing = true, this.restart();
    else this.play();
  }

  // Brings those that lag to the first one.
  align() {
    const [first, ...others] = this.videos.filter((video) => !video.ended);
    if (!first || first.paused || first.seeking) return;
    for (const video of others) {
      const late = Math.abs(video.currentTime - first.currentTime) > 0.08;
      if (late && first.currentTime < video.duration && !video.seeking) video.currentTime = first.currentTime;
    }
  }
}
