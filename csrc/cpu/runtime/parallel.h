// torch's own thread pool and thread count, without its headers: what computes knows no torch.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fastres::cpu {

int64_t thread_count();

// Calls call(part, i) for i in [0, parts): parallel_parts without its type.
void run_parts(int64_t parts, const void* part, void (*call)(const void* part, int64_t i));

// Calls part(i) for i in [0, parts), one per thread where there are as many. Each has the thread's
// scratch memory for itself.
template <class Part>
void parallel_parts(int64_t parts, const Part& part) {
  run_parts(parts, &part, [](const void* of, int64_t i) { (*static_cast<const Part*>(of))(i); });
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The i-th of `parts` nearly equal ranges of [0, count).
inline Range even_range(int64_t count, int64_t parts, int64_t i) {
  return {count * i / parts, count * (i + 1) / parts};
}

// The first band of some rows of images of so many rows each: one of nearly equal ones, of at most
// `most` rows, of the image in which they begin. Its last one must not be a narrow remainder.
inline Range first_band(Range rows, int64_t rows_per_image, int64_t most) {
  const int64_t left = std::min(rows_per_image - rows.begin % rows_per_image, rows.size());
  const int64_t bands = (left + most - 1) / most;
  return {rows.begin, rows.begin + (left + bands - 1) / bands};
}

// Calls use(image, rows) for each image's part of a share of the rows of images of so many rows.
template <class Use>
void for_each_image(Range share, int64_t rows_per_image, const Use& use) {
  for (int64_t row = share.begin; row < share.end;) {
    const int64_t first = row % rows_per_image;
    const int64_t count = std::min(rows_per_image - first, share.end - row);
    use(row / rows_per_image, Range{first, first + count});
    row += count;
  }
}

// Calls part(image, row) for every row of images of so many rows, on all threads.
template <class Part>
void parallel_rows(int64_t images, int64_t rows_per_image, const Part& part) {
  const int64_t rows = images * rows_per_image;
  const int64_t parts = std::clamp<int64_t>(rows, 1, thread_count());
  parallel_parts(parts, [&](int64_t i) {
    for_each_image(even_range(rows, parts, i), rows_per_image, [&](int64_t image, Range mine) {
      for (int64_t row = mine.begin; row < mine.end; ++row) part(image, row);
    });
  });
}

// Zeroes memory on all threads, where it is large.
inline void clear_memory(void* data, int64_t bytes) {
  const int64_t parts = std::clamp<int64_t>(bytes >> 18, 1, thread_count());
  parallel_parts(parts, [&](int64_t i) {
    const Range range = even_range(bytes, parts, i);
    std::memset(static_cast<char*>(data) + range.begin, 0, static_cast<size_t>(range.size()));
  });
}

}  // namespace fastres::cpu
