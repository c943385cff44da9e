package kernel

// Branch is one process in a tree of processes.
type Branch struct {
	Process *Process
	Depth   int  // 0: a root
	Last    bool // it is the last child of its parent, or the last root
}

// Tree orders processes as a forest, each behind its parent, siblings in the
// order given. Every process appears exactly once, whatever the guest claims:
// one whose parent is not in the list is a root, and of a ring of parents the
// first in the list is.
func Tree(all []Process) []Branch {
	first := make(map[int]int, len(all)) // TGID -> index of its leader, else of its first thread
	for i := range all {
		p := &all[i]
		if j, ok := first[p.TGID]; !ok || p.PID == p.TGID && all[j].PID != all[j].TGID {
			first[p.TGID] = i
		}
	}
	parent := make([]int, len(all)) // -1: a root
	for i := range all {
		p := &all[i]
		at, ok := first[p.PPID]
		if lead := first[p.TGID]; lead != i {
			at, ok = lead, true // a thread, or a pid that the guest lists twice, goes below the first
		}
		if parent[i] = -1; ok && at != i {
			parent[i] = at
		}
	}
	cutRings(parent)

	children := make([][]int, len(all))
	var roots []int
	for i, p := range parent {
		if p < 0 {
			roots = append(roots, i)
		} else {
			children[p] = append(children[p], i)
		}
	}
	out := make([]Branch, 0, len(all))
	type item struct {
		i, depth int
		last     bool
	}
	var stack []item
	push := func(list []int, depth int) {
		for k := len(list) - 1; k >= 0; k-- {
			stack = append(stack, item{list[k], depth, k == len(list)-1})
		}
	}
	push(roots, 0)
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		out = append(out, Branch{&all[it.i], it.depth, it.last})
		push(children[it.i], it.depth+1)
	}
	return out
}

// cutRings makes the first of each ring of parents a root.
func cutRings(parent []int) {
	const (
		fresh = iota
		onWay
		done
	)
	state := make([]uint8, len(parent))
	var way []int
	for i := range parent {
		// Up from i until a root or a place that is known to lead to one.
		way = way[:0]
		j := i
		for j >= 0 && state[j] == fresh {
			state[j] = onWay
			way = append(way, j)
			j = parent[j]
		}
		if j >= 0 && state[j] == onWay { // a ring: find its first member
			first := j
			for k := parent[j]; k != j; k = parent[k] {
				first = min(first, k)
			}
			parent[first] = -1
		}
		for _, k := range way {
			state[k] = done
		}
	}
}
