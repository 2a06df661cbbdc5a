#include "pages.h"

#include <sys/mman.h>
#include <unistd.h>

namespace fastres::cpu {

size_t rounded_to_pages(size_t bytes) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

// Maps one huge page more and unmaps the ends.
void* map_pages(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t mapped = bytes + kHugePage;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(raw);
  const size_t misaligned = reinterpret_cast<size_t>(begin) % kHugePage;
  const size_t before = misaligned == 0 ? 0 : kHugePage - misaligned;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a hint: small pages serve as well
#endif
  return begin + before;
}

void unmap_pages(void* pages, size_t bytes) { munmap(pages, bytes); }

}  // namespace fastres::cpu
