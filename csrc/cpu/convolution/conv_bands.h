// A convolution's bands on one thread, and what of it threads share.

#pragma once

#include "../runtime/parallel.h"
#include "conv.h"
#include "image.h"

namespace fastres::cpu {

// Output rows come in slices, the unit that threads and bands share: Winograd's tiles are two rows
// high, and must not depend on where a share begins.
int64_t slices_per_image(const Conv& conv);

// Runs one thread's share in bands that stay in its level-2 cache.
class BandRunner {
 public:
  BandRunner(const Microkernels& kernels, const Conv& conv, Range panels);

  // Whether each panel of weights is used once.
  bool uses_panels_once(Range slices) const;

  // Whether nothing has to be copied before it is convolved.
  bool reads_in_place() const { return direct_input_; }

  // About how many bands it takes.
  int64_t bands(int64_t slices) const { return slices / slices_at_once_; }

  // Which of some slices to do first: a band, or whole images that are taken together.
  Range first_of(Range slices) const;

  // What first_of() has said, and what comes after it.
  void run(Range slices, Range left) const;

 private:
  // Some rows of an image's output.
  struct Place {
    int64_t n, row, rows;
  };

  // Whether there is a next band, whose rows are fetched.
  enum class Prefetch { no, yes };

  Place place(Range slices) const;

  Range next_band(Range slices) const;

  int64_t slices_in_cache(Prefetch prefetch) const;

  int64_t rows_in_cache(Prefetch prefetch) const;

  int64_t chunk_rows() const;

  // 0 or 1 where some slices begin with a band.
  int64_t images_first_of(Range slices) const;

  // Images that are taken at once, so that the weights are read less often.
  int64_t images_together() const;

  void run_images(Range images) const;

  // `next` is what comes after it, perhaps no rows.
  void run_band(const Place& here, const Place& next) const;

  bool fetches_residual() const;

  // What a band reads and writes.
  void fetch(const Place& band, Upcoming& upcoming) const;

  // `place` of `places` of the scratch memory, where it has to be loaded.
  Band input_band(int64_t n, int64_t h, int64_t rows, int64_t place = 0, int64_t places = 1) const;

  Band residual_band(int64_t n, int64_t h, int64_t rows) const;

  Band output_scratch(int64_t rows) const;

  const Microkernels& kernels_;
  const Conv& conv_;
  const Range panels_;
  const Range channels_;
  const bool direct_input_;
  const bool on_tiles_;
  // Tiles read and write bfloat16 values as they are stored.
  const bool stored_input_, stored_output_;
  const bool direct_output_;
  const bool direct_residual_;
  // The weights leave the cache room, and tiles time, for the lines that the next band writes.
  const bool fetches_output_;
  const int64_t loaded_stride_;  // floats between the pixels of an input that is not direct
  // Of a band after which none is fetched, and of one after which one is.
  const int64_t slices_alone_, slices_at_once_;
  const int64_t images_together_;
};

}  // namespace fastres::cpu
