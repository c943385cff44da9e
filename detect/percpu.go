package detect

import (
	"fmt"

	"vmscope/mem"
)

// maxCPUs is how many CPUs a kernel can be built for (NR_CPUS).
const maxCPUs = 8192

// perCPU tells how far each CPU's variables lie behind those that symbols name.
// Those of a CPU that can not be may not be mapped.
func perCPU(l *Look) ([]mem.VA, error) {
	offsets, err := l.Symbol("__per_cpu_offset")
	if err != nil {
		return nil, err
	}
	at, err := l.Symbol("nr_cpu_ids")
	if err != nil {
		return nil, err
	}
	n, err := l.Mem.Uint32(at)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > maxCPUs {
		return nil, &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: %d CPUs", mem.ErrInconsistent, n)}
	}
	out := make([]mem.VA, n)
	for cpu := range out {
		off, err := l.Mem.Uint64(offsets + 8*mem.VA(cpu))
		if err != nil {
			return nil, err
		}
		out[cpu] = mem.VA(off)
	}
	return out, nil
}
