// Target maps on the GPU, tile by tile in registers: shared by rendering (which stores them) and the loss (which never does).
#pragma once
#include "device.cuh"
#include "gaussian.h"

namespace fastpose {

// A block of kTileThreads threads covers a tile of 4096 elements, 16 a thread, in packs along the dimension that is dense in memory.
constexpr int kTileThreads = 256;
constexpr int kTileElements = 4096;
constexpr int kPerThread = kTileElements / kTileThreads;

struct PlaneTile {  // NCHW: packs of columns
  static constexpr int joints = 1, rows = 64, columns = 64;
  static constexpr bool joints_inner = false;
};
struct JointTile {  // channels_last: packs of joints
  static constexpr int joints = 16, rows = 16, columns = 16;
  static constexpr bool joints_inner = true;
};

template <typename Tile> int64_t tile_count(const Gaussians& g) {
  return g.batch * divide_up(g.joints, Tile::joints) * divide_up(g.height, Tile::rows) * divide_up(g.width, Tile::columns);
}

struct Place {
  int64_t b, k, y, x;
};

// The first element of a block's tile: tiles run over columns, rows, joints, batch, fastest first.
template <typename Tile> __device__ __forceinline__ Place tile_origin(const Gaussians& g, int64_t block) {
  const int64_t across = (g.width + Tile::columns - 1) / Tile::columns, down = (g.height + Tile::rows - 1) / Tile::rows;
  const int64_t deep = (g.joints + Tile::joints - 1) / Tile::joints;
  Place o;
  o.x = block % across * Tile::columns;
  block /= across;
  o.y = block % down * Tile::rows;
  block /= down;
  o.k = block % deep * Tile::joints;
  o.b = block / deep;
  return o;
}

struct TileElement {
  int joint, row, column;  // relative to the tile
};

// Element e of the tile's pack number `index`, packs of V elements.
template <typename Tile, int V> __device__ __forceinline__ TileElement tile_element(int index, int e) {
  if constexpr (Tile::joints_inner) {
    constexpr int packs = Tile::joints / V;
    return {index % packs * V + e, index / packs / Tile::columns, index / packs % Tile::columns};
  } else {
    constexpr int packs = Tile::columns / V;
    return {0, index / packs, index % packs * V + e};
  }
}

// The thread's i-th pack of V elements: its first element and how many elements lie in the maps.
struct TilePack : TileElement {
  int count;
};

template <typename Tile, int V> __device__ __forceinline__ TilePack tile_pack(const Gaussians& g, const Place& o, int i) {
  const TileElement p = tile_element<Tile, V>(threadIdx.x + i * kTileThreads, 0);
  const int64_t left = Tile::joints_inner ? g.joints - o.k - p.joint : g.width - o.x - p.column;
  const bool outside = o.y + p.row >= g.height || o.x + p.column >= g.width || left <= 0;
  return {p, outside ? 0 : left < V ? int(left) : V};
}

template <typename T, typename Tile> __device__ __forceinline__ T* pack_address(const Maps& m, const Place& o, const TilePack& p) {
  return m.plane<T>(o.b, o.k + p.joint) + (o.y + p.row) * m.row + (o.x + p.column) * m.column;
}

template <typename Tile> __device__ __forceinline__ int64_t pack_stride(const Maps& m) {
  return Tile::joints_inner ? m.joint : m.column;
}

// Fills `target` with the thread's 16 elements of the maps: kPerThread / V packs of V. (columns + rows) exponentials a person and
// joint of the tile, then one multiplication an element. kDisc: the window is a disc. Returns, for each joint of the tile, how many people are labelled there.
template <typename Tile, int V, bool kDisc>
__device__ __forceinline__ const int* draw_tile(const Gaussians& g, const Place& o, float (&target)[kPerThread]) {
  constexpr int kPeople = 8;  // held in shared memory at a time
  __shared__ float x_factor[kPeople][Tile::joints][Tile::columns], y_factor[kPeople][Tile::joints][Tile::rows];
  __shared__ float centre_x[kPeople][Tile::joints], centre_y[kPeople][Tile::joints], scale[kPeople][Tile::joints];
  __shared__ int labelled[Tile::joints];
  const float radius = float(g.radius);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) target[e] = 0.0f;

  for (int64_t first = 0; first == 0 || first < g.people; first += kPeople) {
    const int people = g.people - first < kPeople ? int(g.people - first) : kPeople;
    __syncthreads();  // the previous people's factors are used up
    for (int j = threadIdx.x; j < Tile::joints; j += kTileThreads) {
      int count = first == 0 ? 0 : labelled[j];
      for (int p = 0; p < people; ++p) {
        Centre<float> c{0, 0, 1, false};
        if (o.k + j < g.joints) c = centre_of<float>(g, o.b, first + p, o.k + j);
        centre_x[p][j] = c.x;
        centre_y[p][j] = c.y;
        scale[p][j] = c.labelled ? -0.5f / (c.sigma * c.sigma) : 0.0f;  // 0 marks "no label"
        count += c.labelled;
      }
      labelled[j] = count;
    }
    __syncthreads();
    constexpr int kFactors = Tile::columns + Tile::rows;
    for (int i = threadIdx.x; i < people * Tile::joints * kFactors; i += kTileThreads) {
      const int p = i / kFactors / Tile::joints, j = i / kFactors % Tile::joints, at = i % kFactors;
      const bool along_x = at < Tile::columns;
      const float d = along_x ? float(o.x + at) - centre_x[p][j] : float(o.y + at - Tile::columns) - centre_y[p][j];
      const float s = scale[p][j];
      const float value = s == 0.0f || (!kDisc && fabsf(d) > radius) ? 0.0f : expf(s * d * d);
      if (along_x) x_factor[p][j][at] = value;
      else y_factor[p][j][at - Tile::columns] = value;
    }
    __syncthreads();
#pragma unroll 1  // one person is the rule: registers are better spent on blocks in flight
    for (int p = 0; p < people; ++p) {
#pragma unroll
      for (int i = 0; i < kPerThread / V; ++i) {
        const int index = threadIdx.x + i * kTileThreads;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const TileElement at = tile_element<Tile, V>(index, e);
          float value = x_factor[p][at.joint][at.column] * y_factor[p][at.joint][at.row];
          if (kDisc) {
            const float dx = float(o.x + at.column) - centre_x[p][at.joint], dy = float(o.y + at.row) - centre_y[p][at.joint];
            if (!(dx * dx + dy * dy <= radius * radius)) value = 0.0f;
          }
          float& t = target[i * V + e];
          t = g.add ? t + value : fmaxf(t, value);
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) target[e] = fmaf(fminf(target[e], 1.0f), float(g.amplitude), float(g.offset));
  return labelled;
}

}  // namespace fastpose
