// Whole pages from the system, in huge pages where the kernel has them.

#pragma once

#include <cstddef>

namespace fastres::cpu {

// `bytes`, rounded up to small pages: a packed weight of 2 MB and a header must not take 4 MB.
size_t rounded_to_pages(size_t bytes);

// So many zero bytes, a multiple of a small page, at a multiple of the huge page; null when memory
// is exhausted.
void* map_pages(size_t bytes);
void unmap_pages(void* pages, size_t bytes);

}  // namespace fastres::cpu
