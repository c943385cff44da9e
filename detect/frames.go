package detect

import (
	"context"
	"fmt"

	"vmscope/mem"
	"vmscope/vm"
)

// Frames compares the two tables that tell where the memory of a guest is that
// knows frames of its host (a PV domain of Xen's): the guest's own (p2m) and the
// hypervisor's (m2p). Kernels change both together. Where they contradict each
// other, who goes by the guest's table reads another page than the guest uses.
//
// Other guests have no such table, and no findings.
type Frames struct{}

// Name implements Detector.
func (Frames) Name() string { return "frames" }

// maxDisputed is how many pages are shown.
const maxDisputed = 8

// Inspect implements Detector.
func (d Frames) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	m, ok := l.Machine.(vm.Doubted)
	if !ok {
		return nil
	}
	return persists(ctx, l, report, func(report func(Finding)) error {
		list, all, err := m.Disputed(maxDisputed)
		if err != nil {
			return fmt.Errorf("compare the guest's table of its frames with the hypervisor's: %w", err)
		}
		if len(list) > 0 {
			report(disputed(list, all))
		}
		return nil
	})
}

// disputed is one finding for all pages: they are numbers, which another look may
// find others of.
func disputed(list []vm.Disputed, all int) Finding {
	f := Finding{Check: "frames", Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("the guest's table of its frames (p2m) contradicts the hypervisor's (m2p) on %d pages, the first at physical address %#x", all, uint64(list[0].Page))}
	for _, p := range list {
		found := "none"
		if p.Owned {
			found = fmt.Sprintf("physical address %#x", uint64(p.Is))
		}
		f.Evidence = append(f.Evidence, Evidence{
			What:  fmt.Sprintf("physical address %#x: machine frame %#x by the guest's p2m; what that frame is by the hypervisor's m2p", uint64(p.Page), p.Frame),
			Owner: "the hypervisor", Expected: fmt.Sprintf("physical address %#x", uint64(p.Page)), Found: found,
		})
	}
	if all > len(list) {
		f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("and %d more", all-len(list)), Found: fmt.Sprintf("%d bytes", (all-len(list))*mem.PageSize)})
	}
	f.identify("p2m")
	return f
}
