// test_attention.h: the checks of what fills a cache and attends to it, for test.cc's walk over kernels.inc.
#ifndef EYESPOT_KERNELS_TEST_ATTENTION_H_
#define EYESPOT_KERNELS_TEST_ATTENTION_H_

#include <string>

#include "kernels/kernels.h"

namespace eyespot {

void check(const std::string& name, const std::string& format, void (*kernel)(const StoreArgs&),
           void (*scalar)(const StoreArgs&));
void check(const std::string& name, const std::string& format, void (*kernel)(const AttentionArgs&),
           void (*scalar)(const AttentionArgs&));
void check(const std::string& name, const std::string& format, void (*kernel)(const MergeArgs&),
           void (*scalar)(const MergeArgs&));

// attention gives the bits of merge over every attention_span.
void check_spans(const std::string& isa, const Kernels& kernels);

}  // namespace eyespot

#endif
