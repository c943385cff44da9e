package detect

import (
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// programs are the ways in which the guest attaches programs of eBPF (rat bpf),
// and what the inventory says of each. The programs of one type are told together.
var programs = []struct {
	way   string
	words []string
}{
	{"raw", []string{"(raw_tracepoint, tag", "attached to raw_tracepoint sys_enter"}},
	{"tracepoint", []string{"(tracepoint, tag", "perf_event tracepoint sched_switch", "held by process"}},
	{"perf_link", []string{"(tracepoint, tag", "perf_event tracepoint sched_process_exit"}},
	{"kprobe", []string{"(kprobe, tag", "perf_event kprobe do_sys_openat2"}},
	{"kretprobe", []string{"(kprobe, tag", "perf_event kretprobe vfs_statx"}},
	{"uprobe", []string{"(kprobe, tag", "perf_event uprobe /bin/busybox+0x"}},
	{"kprobe_multi", []string{"(kprobe, tag", "kprobe_multi tcp_", " more"}},
	{"fentry", []string{"(tracing, tag", "made for vfs_read, attached to tracing"}},
	{"lsm", []string{"(lsm, tag", "made for bpf_lsm_file_open, attached to tracing"}},
	{"xdp", []string{"(xdp, tag", "attached to xdp lo"}},
	{"tcx", []string{"tcx lo"}},
	{"cgroup", []string{"(cgroup_skb, tag", "attached to cgroup /"}},
	{"cgroup_attach", []string{"(cgroup_skb, tag", "cgroup /rat"}},
}

// testPrograms has a guest attach programs of eBPF in all ways, and demands that
// the inventory tells of each where it is attached, and no more than inventory.
func testPrograms(t *testing.T, lab *guestlab.Guest, look func() Result) {
	out, err := lab.Run(t.Context(), `mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
rat bpf 1000000 >/tmp/programs 2>&1 &
until grep -q ' struct_ops' /tmp/programs; do usleep 20000; done
cat /tmp/programs`)
	if err != nil {
		t.Fatal(err)
	}
	r := look()
	for _, f := range r.Tampered() {
		t.Errorf("%s: %s %+v", f.ID, f.Summary, f.Evidence)
	}
	for _, p := range programs {
		if slices.Contains(refused[lab.Kernel().Name], p.way) {
			continue
		}
		if !strings.Contains(out, "attached "+p.way+"\n") {
			t.Errorf("the guest did not attach %s: %s", p.way, out)
		}
		if !r.has(Info, p.words) {
			t.Errorf("%s: nothing with %q", p.way, p.words)
		}
	}
	if t.Failed() {
		for _, f := range r.Findings {
			t.Log(f.all())
		}
	}
}
