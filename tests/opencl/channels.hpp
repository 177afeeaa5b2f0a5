// What a device with channels offers, for kernels without vectors as C++: each kernel a thread.
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#define __kernel static
#define __global
#define restrict
#define ESPALIER_CHANNELS
#define ESPALIER_CHANNEL(T, NAME) static Channel<T> NAME;
#define ESPALIER_READ(NAME) NAME.read()
#define ESPALIER_WRITE(NAME, WORD) NAME.write(WORD)
#define ESPALIER_TASK
#define ESPALIER_AUTORUN
#define convert_char(x) ((char)(x))
#define convert_short(x) ((short)(x))
#define convert_int(x) ((int)(x))
#define convert_long(x) ((long)(x))
#define convert_float(x) ((float)(x))
#define max(a, b) ((a) < (b) ? (b) : (a))
#define min(a, b) ((b) < (a) ? (b) : (a))

template <class T>
class Channel {
 public:
  void write(T word) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return words_.size() < DEPTH; });
    words_.push_back(word);
    changed_.notify_all();
  }
  T read() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !words_.empty(); });
    T word = words_.front();
    words_.pop_front();
    changed_.notify_all();
    return word;
  }

 private:
  static constexpr std::size_t DEPTH = 16;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> words_;
};

template <class T>
std::vector<T> from_file(const char* path, std::size_t count) {
  std::vector<T> found(count);
  std::FILE* file = std::fopen(path, "rb");
  if (!file || std::fread(found.data(), sizeof(T), count, file) != count) std::abort();
  std::fclose(file);
  return found;
}
