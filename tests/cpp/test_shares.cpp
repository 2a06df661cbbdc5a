// Shares: every item is done once, in pieces as they were asked for, and a slow thread's are taken
// by the others.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/runtime/shares.h"

namespace {

using fastres::cpu::Range;
using fastres::cpu::Shares;

int failures = 0;

void check(const std::string& name, bool passed) {
  std::printf("%s  %s\n", passed ? "ok    " : "FAILED", name.c_str());
  failures += passed ? 0 : 1;
}

struct Done {
  std::vector<int> by;           // the part that did each item, or -1
  std::vector<int64_t> largest;  // piece of each part
  bool twice = false;
};

// All items by `parts` threads, at most `most` at a time; the first thread waits before each piece.
Done run(int64_t count, int parts, int64_t most, bool stays, std::chrono::microseconds wait) {
  Shares shares(count, parts, stays);
  Done done{std::vector<int>(static_cast<size_t>(count), -1),
            std::vector<int64_t>(static_cast<size_t>(parts))};
  std::vector<std::vector<int64_t>> items(static_cast<size_t>(parts));
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) {
    threads.emplace_back([&, part] {
      const auto index = static_cast<size_t>(part);
      shares.run(
          part, [&](Range all) { return Range{all.begin, std::min(all.begin + most, all.end)}; },
          [&](Range piece, Range) {
            if (part == 0) std::this_thread::sleep_for(wait);
            done.largest[index] = std::max(done.largest[index], piece.size());
            for (int64_t i = piece.begin; i < piece.end; ++i) items[index].push_back(i);
          });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int part = 0; part < parts; ++part) {
    for (const int64_t i : items[static_cast<size_t>(part)]) {
      int& by = done.by[static_cast<size_t>(i)];
      done.twice = done.twice || by != -1;
      by = part;
    }
  }
  return done;
}

bool complete(const Done& done) { return !done.twice && std::ranges::count(done.by, -1) == 0; }

}  // namespace

int main() {
  using std::chrono::microseconds;
  bool all = true;
  for (const int64_t count : {0, 1, 2, 3, 7, 100, 1000}) {
    for (const int parts : {1, 2, 3, 5}) {
      for (const int64_t most : {1, 2, 9}) {
        all = all && complete(run(count, parts, most, false, microseconds(1)));
        all = all && complete(run(count, parts, most, true, microseconds(1)));
      }
    }
  }
  check("every item is done once", all);

  const Done slow = run(40, 2, 2, false, microseconds(20000));
  check("every item is done once beside a slow thread", complete(slow));
  check("the other takes what it has left", std::ranges::count(slow.by, 0) < 15);
  check("pieces are as they were asked for", std::ranges::max(slow.largest) == 2);

  const Done stays = run(40, 2, 2, true, microseconds(2000));
  check("what stays is nobody else's", std::ranges::count(stays.by, 0) == 20);
  return failures > 0 ? 1 : 0;
}
