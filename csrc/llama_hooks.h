// What llama.cpp offers only to C callers: hidden states read while it decodes, and the memory
// behind its adapter tensors. Nothing is linked: every function comes as an address, and the one
// struct layout that is needed is declared here and proven at run time by check_layout.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "simd.h"
#include "status.h"

namespace megart::llama {

// Mirror of struct ggml_tensor.
struct Tensor {
    std::int32_t type;
    void* buffer;
    std::int64_t ne[4];
    std::size_t nb[4];
    std::int32_t op;
    std::int32_t op_params[16];
    std::int32_t flags;
    Tensor* src[10];
    Tensor* view_src;
    std::size_t view_offs;
    void* data;
    char name[64];
    void* extra;
    char padding[8];

    std::string_view name_view() const noexcept;
};

struct InitParams {
    std::size_t mem_size;
    void* mem_buffer;
    bool no_alloc;
};

struct Functions {
    void* (*init)(InitParams);
    void (*free)(void*);
    std::size_t (*tensor_overhead)();
    Tensor* (*new_tensor_2d)(void*, std::int32_t, std::int64_t, std::int64_t);
    Tensor* (*view_2d)(void*, Tensor*, std::int64_t, std::int64_t, std::size_t, std::size_t);
    Tensor* (*mul_mat)(void*, Tensor*, Tensor*);
    Tensor* (*set_name)(Tensor*, const char*);
    const char* (*get_name)(const Tensor*);
    void* (*get_data)(const Tensor*);
    const char* (*op_name)(std::int32_t);
    std::size_t (*nbytes)(const Tensor*);
    std::size_t (*element_size)(const Tensor*);
    void* (*buffer_from_ptr)(void*, std::size_t);
    void (*buffer_free)(void*);
    bool (*buffer_is_host)(void*);
    std::int32_t (*tensor_alloc)(void*, Tensor*, void*);
    void (*tensor_get)(const Tensor*, void*, std::size_t, std::size_t);
    void (*tensor_set)(Tensor*, const void*, std::size_t, std::size_t);
};

using Addresses = std::map<std::string, std::uintptr_t>;

std::vector<std::string> function_names();
Status resolve(const Addresses& addresses, Functions& out);

// Proves on tensors of its own that the mirror sees what the library's public functions see.
// mul_mat_op: the number of that operation, as found on the way.
Status check_layout(const Functions& fns, std::int32_t& mul_mat_op);

// Copies `bytes` into a tensor, wherever its buffer lives.
Status write_tensor(const Functions& fns, std::uintptr_t address, Type type, const void* data,
                    std::size_t bytes);

struct Found {
    std::string name;
    std::uintptr_t address, data;
    std::int32_t type;
    std::int64_t ne[4];
    std::size_t nb[4];
    std::size_t nbytes;
    bool is_host;
};

struct Rows {
    std::vector<float> values;  // [count, width]
    std::int64_t width = 0;
    std::int64_t count = 0;
};

// Must outlive every context that was given its callback.
class EvalHook {
public:
    static Status make(const Addresses& addresses, std::unique_ptr<EvalHook>& out);

    // bool(ggml_tensor*, bool ask, void* user_data); never throws.
    static bool callback(Tensor* tensor, bool ask, void* user_data) noexcept;

    // With `stop` the computation ends once the last of the tensors is read: llama_decode then
    // returns 0 with logits that mean nothing, and deeper layers leave no keys or values.
    Status watch(const std::vector<std::string>& names, bool stop = false);
    // The rows of each watched tensor.
    Status take(std::vector<Rows>& out);
    void discover(bool on);
    std::vector<Found> found();

private:
    EvalHook(const Functions& fns, std::int32_t mul_mat_op) : fns_(fns), mul_mat_op_(mul_mat_op) {}

    bool asked(const Tensor& tensor);
    std::size_t place(
        const Tensor& tensor) const;  // among the watched; their number where it is none
    void collect(const Tensor& tensor, Rows& rows);
    void note(Tensor& factor);
    void update_active() noexcept;

    const Functions fns_;
    const std::int32_t mul_mat_op_;
    std::atomic<bool> active_{false};  // the one branch an idle callback costs
    std::mutex lock_;                  // guards all below
    std::vector<std::string> watched_;
    bool stop_ = false;
    bool discovering_ = false;
    std::vector<Rows> rows_;  // of each in watched_
    Status failure_;
    std::vector<Found> found_;
};

}  // namespace megart::llama
