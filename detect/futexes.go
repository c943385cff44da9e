package detect

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Bounds of tables of futexes: the kernel makes 256 queues for each CPU
// (futex_init in kernel/futex/core.c), and may have this many NUMA nodes. A
// process chooses how many it has, and may choose many.
const (
	futexesPerCPU  = 256
	maxNodes       = 1 << 10 // CONFIG_NODES_SHIFT
	maxOwnFutexes  = 1 << 16
	maxFutexQueues = 1 << 20 // of all processes' own together
)

// table is an array of queues of futexes.
type table struct {
	at mem.VA
	n  uint64
}

// onFutexes gives the tasks that wait for a futex: those in the tables of the
// kernel, and of each process in the list that has one of its own.
func onFutexes(l *Look, f *waitLayout, tasks []linux.Task, each func(mem.VA) error) error {
	if f.Bucket == 0 || !f.Chain.Valid() || !f.Waiter.Valid() || !f.QTask.Valid() {
		return nil
	}
	tables, bad := futexTables(l)
	bad = missing(bad)
	own, err := ownFutexTables(l, f, tasks)
	if err := steady(err, &bad); err != nil {
		return err
	}
	for _, t := range append(tables, own...) {
		if err := steady(f.queues(l, t, &bad, each), &bad); err != nil {
			return err
		}
	}
	return bad
}

// futexTables are the kernel's tables, one for each NUMA node. Where they are
// was told by a struct without a name that began with the only table; since
// v6.16 it begins with a mask, and ends with the tables. Later kernels have a
// variable for each.
func futexTables(l *Look) ([]table, error) {
	cpus, err := perCPU(l)
	if err != nil {
		return nil, err
	}
	most := futexesPerCPU << bits.Len(uint(len(cpus)-1))
	nodes, mask := mem.VA(0), uint64(0)
	if at, err := l.Symbol("__futex_data"); err == nil {
		var b [16]byte
		if _, err := l.Mem.Read(b[:], at); err != nil {
			return nil, err
		}
		first, second := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
		if mem.VA(first) >= kernelHalf {
			if second&1 == 0 { // how many there are, and not a mask
				second--
			}
			return sized([]table{{mem.VA(first), second + 1}}, uint64(most))
		}
		nodes, mask = at+16, first
	} else {
		if at, err = l.Symbol("__futex_queues"); err != nil {
			return nil, err
		}
		if nodes, err = l.Mem.Pointer(at); err != nil {
			return nil, err
		}
		if at, err = l.Symbol("__futex_mask"); err != nil {
			return nil, err
		}
		m, err := l.Mem.Uint32(at)
		if err != nil {
			return nil, err
		}
		mask = uint64(m)
	}
	n := uint32(1)
	if at, err := l.Symbol("nr_node_ids"); err == nil {
		if n, err = l.Mem.Uint32(at); err != nil {
			return nil, err
		}
	}
	var out []table
	for i := range mem.VA(min(n, maxNodes)) {
		at, err := l.Mem.Pointer(nodes + 8*i)
		if err != nil {
			return out, err
		}
		if at != 0 {
			out = append(out, table{at, mask + 1})
		}
	}
	return sized(out, uint64(most))
}

// errBuckets says that a hash table cannot be as large as it says.
func errBuckets(at mem.VA, n uint64) error {
	return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: %d queues of futexes", mem.ErrInconsistent, n)}
}

// sized are tables that are not larger than the kernel makes them.
func sized(tables []table, most uint64) ([]table, error) {
	for _, t := range tables {
		if t.n == 0 || t.n > most {
			return nil, errBuckets(t.at, t.n)
		}
	}
	return tables, nil
}

// ownFutexTables are those of processes (since v6.16: those with threads).
func ownFutexTables(l *Look, f *waitLayout, tasks []linux.Task) ([]table, error) {
	if !f.Private.Valid() || !f.Mask.Valid() || !f.Queues.Valid() {
		return nil, nil
	}
	var out []table
	var bad error
	total := uint64(0)
	for _, t := range tasks {
		if t.PID != t.TGID || t.KThread() {
			continue
		}
		at, err := l.Mem.Pointer(f.MM.At(t.Addr))
		if err == nil && at != 0 {
			at, err = l.Mem.Pointer(f.Private.At(at))
		}
		if err != nil || at == 0 {
			if err := steady(err, &bad); err != nil {
				return out, err
			}
			continue
		}
		mask, err := l.Mem.Uint32(f.Mask.At(at))
		if err := steady(err, &bad); err != nil {
			return out, err
		}
		n := uint64(mask) + 1
		if err != nil || n > maxOwnFutexes || total+n > maxFutexQueues {
			continue
		}
		total += n
		out = append(out, table{f.Queues.At(at), n})
	}
	return out, bad
}

// queues gives who waits in a table. It is read in pieces; the queues that are
// not empty are walked.
func (f *waitLayout) queues(l *Look, t table, bad *error, each func(mem.VA) error) error {
	const piece = 1 << 14
	per := max(1, piece/f.Bucket)
	b := make([]byte, min(t.n, per)*f.Bucket)
	for i := uint64(0); i < t.n; i += per {
		n := min(per, t.n-i)
		at := t.at + mem.VA(i*f.Bucket)
		if _, err := l.Mem.Read(b[:n*f.Bucket], at); err != nil {
			return err
		}
		for j := range n {
			head := f.Chain.At(at + mem.VA(j*f.Bucket))
			first := mem.VA(binary.LittleEndian.Uint64(b[j*f.Bucket+f.Chain.Offset:]))
			if first == head || first == 0 {
				continue
			}
			err := l.List(head, func(node mem.VA) error {
				task, err := l.Mem.Pointer(f.QTask.At(node - mem.VA(f.Waiter.Offset)))
				if err != nil {
					return err
				}
				return each(task) // 0 if it was just woken
			})
			if err := steady(err, bad); err != nil {
				return err
			}
		}
	}
	return nil
}
