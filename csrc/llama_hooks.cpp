#include "llama_hooks.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <type_traits>

namespace megart::llama {
namespace {

constexpr std::int32_t kF32 = 0, kF16 = 1, kQ8 = 8;

struct Slot {
    const char* name;
    void (*assign)(Functions&, std::uintptr_t);
};

template <auto Member>
void assign(Functions& fns, std::uintptr_t address) {
    using Pointer = std::remove_reference_t<decltype(fns.*Member)>;
    fns.*Member = reinterpret_cast<Pointer>(address);
}

constexpr Slot kSlots[] = {
    {"ggml_init", assign<&Functions::init>},
    {"ggml_free", assign<&Functions::free>},
    {"ggml_tensor_overhead", assign<&Functions::tensor_overhead>},
    {"ggml_new_tensor_2d", assign<&Functions::new_tensor_2d>},
    {"ggml_view_2d", assign<&Functions::view_2d>},
    {"ggml_mul_mat", assign<&Functions::mul_mat>},
    {"ggml_set_name", assign<&Functions::set_name>},
    {"ggml_get_name", assign<&Functions::get_name>},
    {"ggml_get_data", assign<&Functions::get_data>},
    {"ggml_op_name", assign<&Functions::op_name>},
    {"ggml_nbytes", assign<&Functions::nbytes>},
    {"ggml_element_size", assign<&Functions::element_size>},
    {"ggml_backend_cpu_buffer_from_ptr", assign<&Functions::buffer_from_ptr>},
    {"ggml_backend_buffer_free", assign<&Functions::buffer_free>},
    {"ggml_backend_buffer_is_host", assign<&Functions::buffer_is_host>},
    {"ggml_backend_tensor_alloc", assign<&Functions::tensor_alloc>},
    {"ggml_backend_tensor_get", assign<&Functions::tensor_get>},
    {"ggml_backend_tensor_set", assign<&Functions::tensor_set>},
};

constexpr const char* kPin = "install the llama-cpp-python version that megart names";

Status differs(const char* field) {
    return Status::runtime(explain("struct ggml_tensor", std::string("another layout at ") + field,
                                   "the one of llama-cpp-python 0.3.36", kPin));
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool has_shape(const Tensor& t, std::int64_t cols, std::int64_t rows, std::size_t item) {
    const auto c = static_cast<std::size_t>(cols), r = static_cast<std::size_t>(rows);
    return t.ne[0] == cols && t.ne[1] == rows && t.ne[2] == 1 && t.ne[3] == 1 && t.nb[0] == item &&
           t.nb[1] == item * c && t.nb[2] == item * c * r && t.nb[3] == item * c * r;
}

// Frees what the probe made, on every way out.
struct Probe {
    const Functions& fns;
    void* context = nullptr;
    void* buffer = nullptr;
    alignas(64) unsigned char memory[256] = {};  // the buffer's
    ~Probe() {
        if (buffer) fns.buffer_free(buffer);
        if (context) fns.free(context);
    }
};

Status probe_memory(const Functions& fns, Probe& probe, Tensor* t) {
    unsigned char* memory = probe.memory;
    probe.buffer = fns.buffer_from_ptr(memory, sizeof probe.memory);
    if (!probe.buffer) return Status::memory("ggml_backend_cpu_buffer_from_ptr: no memory");
    if (fns.tensor_alloc(probe.buffer, t, memory + 64) != 0)
        return Status::runtime(explain("ggml_backend_tensor_alloc", "a failure", "success", kPin));
    if (t->buffer != probe.buffer) return differs("buffer");
    if (t->data != memory + 64) return differs("data");
    if (!fns.buffer_is_host(probe.buffer)) return differs("buffer (host)");
    unsigned char sent[6 * sizeof(float)], back[sizeof sent] = {};
    std::iota(std::begin(sent), std::end(sent), static_cast<unsigned char>(1));
    fns.tensor_set(t, sent, 0, sizeof sent);
    fns.tensor_get(t, back, 0, sizeof back);
    if (std::memcmp(memory + 64, sent, sizeof sent) != 0 ||
        std::memcmp(back, sent, sizeof sent) != 0)
        return differs("data (written and read back)");
    return {};
}

struct Shape2 {
    std::int64_t rows, cols;
    Type type;
};

Status describe_tensor(const Functions& fns, std::uintptr_t address, Shape2& out) {
    if (address == 0)
        return Status::value(explain("address", "0", "the address of a ggml_tensor",
                                     "take it from EvalHook.found()"));
    const auto* t = reinterpret_cast<const Tensor*>(address);
    if (t->type != kF32 && t->type != kF16 && t->type != kQ8)
        return Status::value(explain("tensor", "ggml type " + std::to_string(t->type),
                                     "float32, float16 or q8_0",
                                     "store the adapter as f32, f16 or q8_0"));
    out = {t->ne[1] * t->ne[2] * t->ne[3], t->ne[0], Type::q8_0};
    if (t->type == kF32) out.type = Type::f32;
    if (t->type == kF16) out.type = Type::f16;
    const std::size_t bytes = bytes_of(out.type, static_cast<std::size_t>(out.rows * out.cols));
    if (bytes != fns.nbytes(t))
        return Status::value(explain("tensor", "strided rows", "rows without gaps",
                                     "use the tensor itself, not a view of it"));
    return {};
}

}  // namespace

std::string_view Tensor::name_view() const noexcept {
    const void* end = std::memchr(name, 0, sizeof name);
    return {name,
            end ? static_cast<std::size_t>(static_cast<const char*>(end) - name) : sizeof name};
}

std::vector<std::string> function_names() {
    std::vector<std::string> names;
    for (const Slot& slot : kSlots) names.emplace_back(slot.name);
    return names;
}

Status resolve(const Addresses& addresses, Functions& out) {
    for (const Slot& slot : kSlots) {
        const auto at = addresses.find(slot.name);
        if (at == addresses.end() || at->second == 0)
            return Status::value(explain("fns", std::string("no address of ") + slot.name,
                                         "one for each name in HOOK_FUNCTIONS",
                                         "take it by ctypes from the loaded ggml library"));
        slot.assign(out, at->second);
    }
    return {};
}

Status check_layout(const Functions& fns, std::int32_t& mul_mat_op) {
    // No function is missing: resolve() alone makes Functions, and refuses one that lacks any.
    // NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage)
    if (fns.tensor_overhead() < sizeof(Tensor)) return differs("its size");
    const Probe probe{
        fns, fns.init({16 * fns.tensor_overhead() + 4096, nullptr, false}), nullptr, {}};
    if (!probe.context) return Status::memory("ggml_init: no memory");
    Tensor* a = fns.new_tensor_2d(probe.context, kF16, 7, 5);
    Tensor* b = fns.new_tensor_2d(probe.context, kF32, 7, 3);
    Tensor* c = fns.mul_mat(probe.context, a, b);
    Tensor* view = fns.view_2d(probe.context, b, 2, 3, 28, 8);
    fns.set_name(a, "megart.probe.lora_a");

    if (a->type != kF16 || b->type != kF32 || c->type != kF32) return differs("type");
    if (!has_shape(*a, 7, 5, 2) || !has_shape(*b, 7, 3, 4) || !has_shape(*c, 5, 3, 4))
        return differs("ne and nb");
    if (fns.nbytes(a) != 70 || fns.nbytes(b) != 84 || fns.element_size(a) != a->nb[0] ||
        fns.element_size(b) != b->nb[0])
        return differs("type sizes");
    if (fns.get_name(a) != a->name || a->name_view() != "megart.probe.lora_a")
        return differs("name");
    if (a->op != b->op || a->op == c->op || std::strcmp(fns.op_name(a->op), "NONE") != 0 ||
        std::strcmp(fns.op_name(c->op), "MUL_MAT") != 0)
        return differs("op");
    if (a->src[0] || c->src[0] != a || c->src[1] != b || c->src[2] || c->src[9])
        return differs("src");
    if (b->view_src || view->view_src != b || view->view_offs != 8 || view->src[0] != b)
        return differs("view_src and view_offs");
    if (view->ne[0] != 2 || view->ne[1] != 3 || view->nb[1] != 28) return differs("nb of a view");
    for (const Tensor* t : {a, b, c, view})
        if (!t->data || t->data != fns.get_data(t)) return differs("data");
    if (static_cast<char*>(view->data) != static_cast<char*>(b->data) + 8)
        return differs("data of a view");
    if (a->buffer || c->buffer) return differs("buffer");
    const std::int32_t op = c->op;

    // A tensor without memory of its own, for the buffer's sake.
    Probe bare{fns, fns.init({4 * fns.tensor_overhead() + 1024, nullptr, true}), nullptr, {}};
    if (!bare.context) return Status::memory("ggml_init: no memory");
    Tensor* t = fns.new_tensor_2d(bare.context, kF32, 3, 2);
    if (t->data || t->buffer) return differs("data and buffer of a tensor without memory");
    Status status = probe_memory(fns, bare, t);
    if (status.ok()) mul_mat_op = op;
    return status;
}

Status write_tensor(const Functions& fns, std::uintptr_t address, Type type, const void* data,
                    std::size_t bytes) {
    Shape2 shape{};
    Status status = describe_tensor(fns, address, shape);
    if (!status.ok()) return status;
    auto* t = reinterpret_cast<Tensor*>(address);
    if (shape.type != type || bytes != fns.nbytes(t))
        return Status::value(explain(
            "array for tensor " + std::string(t->name_view()),
            std::to_string(bytes) + " bytes of " + name_of(type),
            std::to_string(fns.nbytes(t)) + " bytes of " + name_of(shape.type),
            "make it [" + std::to_string(shape.rows) + ", " + std::to_string(shape.cols) + "]"));
    if (bytes) fns.tensor_set(t, data, 0, bytes);
    return {};
}

Status EvalHook::make(const Addresses& addresses, std::unique_ptr<EvalHook>& out) {
    Functions fns{};
    Status status = resolve(addresses, fns);
    std::int32_t mul_mat_op = 0;
    if (status.ok()) status = check_layout(fns, mul_mat_op);
    if (status.ok()) out.reset(new EvalHook(fns, mul_mat_op));  // the constructor is private
    return status;
}

bool EvalHook::callback(Tensor* tensor, bool ask, void* user_data) noexcept {
    auto& self = *static_cast<EvalHook*>(user_data);
    if (!self.active_.load(std::memory_order_relaxed)) return !ask;
    try {
        const std::scoped_lock guard(self.lock_);
        try {
            if (ask) return self.asked(*tensor);
            const std::size_t place = self.place(*tensor);
            if (place < self.watched_.size()) self.collect(*tensor, self.rows_[place]);
            if (self.stop_ && place + 1 == self.watched_.size()) return false;
        } catch (...) {
            self.failure_ = Status::memory({});  // an empty message needs no memory
        }
    } catch (...) {
        // The mutex itself failed: the decode goes on all the same.
    }
    return !ask;
}

bool EvalHook::asked(const Tensor& tensor) {
    if (discovering_ && tensor.op == mul_mat_op_ && tensor.src[0]) {
        const std::string_view name = tensor.src[0]->name_view();
        if (ends_with(name, ".lora_a") || ends_with(name, ".lora_b")) note(*tensor.src[0]);
    }
    return place(tensor) < watched_.size();
}

std::size_t EvalHook::place(const Tensor& tensor) const {
    const auto found = std::find(watched_.begin(), watched_.end(), tensor.name_view());
    return static_cast<std::size_t>(found - watched_.begin());
}

void EvalHook::collect(const Tensor& tensor, Rows& rows) {
    if (!failure_.ok()) return;
    const std::string label = "tensor " + std::string(tensor.name_view());
    if (tensor.type != kF32 || tensor.nb[0] != sizeof(float)) {
        failure_ = Status::value(explain(label, "ggml type " + std::to_string(tensor.type),
                                         "contiguous float32 rows", "watch another tensor"));
        return;
    }
    const std::int64_t width = tensor.ne[0], count = tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    if (rows.count > 0 && rows.width != width) {
        failure_ = Status::value(explain(label, std::to_string(width) + " columns",
                                         std::to_string(rows.width) + " as before",
                                         "take() before another model is decoded"));
        return;
    }
    const std::size_t row_bytes = static_cast<std::size_t>(width) * sizeof(float);
    const std::size_t used = rows.values.size();
    rows.values.resize(used + static_cast<std::size_t>(width * count));
    rows.width = width;
    rows.count += count;
    if (width == 0 || count == 0) return;
    float* target = rows.values.data() + used;
    if (tensor.nb[1] == row_bytes &&
        fns_.nbytes(&tensor) == row_bytes * static_cast<std::size_t>(count)) {
        fns_.tensor_get(&tensor, target, 0, row_bytes * static_cast<std::size_t>(count));
        return;
    }
    for (std::int64_t i3 = 0; i3 < tensor.ne[3]; ++i3)
        for (std::int64_t i2 = 0; i2 < tensor.ne[2]; ++i2)
            for (std::int64_t i1 = 0; i1 < tensor.ne[1]; ++i1, target += width)
                fns_.tensor_get(&tensor, target,
                                static_cast<std::size_t>(i1) * tensor.nb[1] +
                                    static_cast<std::size_t>(i2) * tensor.nb[2] +
                                    static_cast<std::size_t>(i3) * tensor.nb[3],
                                row_bytes);
}

void EvalHook::note(Tensor& factor) {
    const std::string_view name = factor.name_view();
    for (const Found& known : found_)
        if (known.name == name) return;
    void* buffer = factor.buffer;
    if (!buffer && factor.view_src) buffer = factor.view_src->buffer;
    Found found{std::string(name),
                reinterpret_cast<std::uintptr_t>(&factor),
                reinterpret_cast<std::uintptr_t>(factor.data),
                factor.type,
                {},
                {},
                fns_.nbytes(&factor),
                buffer && fns_.buffer_is_host(buffer)};
    std::copy(std::begin(factor.ne), std::end(factor.ne), found.ne);
    std::copy(std::begin(factor.nb), std::end(factor.nb), found.nb);
    found_.push_back(std::move(found));
}

void EvalHook::update_active() noexcept {
    active_.store(discovering_ || !watched_.empty(), std::memory_order_relaxed);
}

Status EvalHook::watch(const std::vector<std::string>& names, bool stop) {
    for (const std::string& name : names)
        if (name.empty() || name.size() >= sizeof(Tensor::name))
            return Status::value(explain("name", std::to_string(name.size()) + " bytes", "1 to 63",
                                         "give the tensors' names, as l_out-2"));
    const std::scoped_lock guard(lock_);
    if (names != watched_) rows_.assign(names.size(), Rows{});
    watched_ = names;
    stop_ = stop;
    update_active();
    return {};
}

Status EvalHook::take(std::vector<Rows>& out) {
    const std::scoped_lock guard(lock_);
    out.assign(rows_.size(), Rows{});
    for (std::size_t i = 0; i < rows_.size(); ++i) out[i].width = rows_[i].width;
    Status status = std::move(failure_);
    failure_ = Status{};
    std::swap(out, rows_);
    return status;
}

void EvalHook::discover(bool on) {
    const std::scoped_lock guard(lock_);
    if (on && !discovering_) found_.clear();
    discovering_ = on;
    update_active();
}

std::vector<Found> EvalHook::found() {
    const std::scoped_lock guard(lock_);
    return found_;
}

}  // namespace megart::llama
