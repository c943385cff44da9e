package main

import (
	"crypto/md5"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// xenFronts are domains whose kernels have the block front ends that are in use.
var xenFronts = []guestlab.XenDomain{
	{Name: "front510", Kernel: "bullseye-cloud", Type: "pv"},
	{Name: "front612", Kernel: "trixie-cloud", Type: "pv", VCPUs: 2},
	{Name: "front7", Kernel: "sid-cloud", Type: "pvh"},
}

// testXenFronts gives a disk of ours to one domain after the other.
func testXenFronts(t *testing.T, files map[string]string) {
	// Two processors, since a front end is offered as many queues as dom0 has processors.
	cfg := guestlab.XenConfig{Files: maps.Clone(files), CPUs: 2, MemoryMiB: 2000, Dom0MemoryMiB: 1400}
	for _, f := range xenFronts {
		cfg.Kernels = append(cfg.Kernels, f.Kernel)
		cfg.Files["/srv/"+f.Name+".img"] = xenImage(t)
	}
	x := bootXen(t, cfg)
	for _, f := range xenFronts {
		t.Run(f.Kernel, func(t *testing.T) { x.testFront(t, f) })
	}
}

// testFront has a domain write to its disk by all that its front end and we agreed on, and wants to find it there when the
// domain is gone.
func (x *xenCLI) testFront(t *testing.T, cfg guestlab.XenDomain) {
	disk := x.serve(t, "/srv/"+cfg.Name+".img", "xvda")
	cfg.Disks = []string{disk.line()}
	d := x.create(t, cfg)
	t.Logf("%s, %s", x.inside(t, d, "uname -rm"), cfg.Type)
	x.testAgreed(t, d, max(cfg.VCPUs, 1))
	x.testEvents(t, d, disk)
	sum := x.testLarge(t, d, disk)
	var written map[string]string
	if cfg.VCPUs > 1 {
		written = x.testQueues(t, d, disk, cfg.VCPUs)
	}
	w := x.write(t, d, "/mnt/root")
	w.goOn(t, 0, 20)
	last := w.stop(t)
	if err := d.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := disk.content(t, "/root")
	w.check(t, last, files)
	if got := fmt.Sprintf("%x", md5.Sum([]byte(files["large"]))); got != sum {
		t.Errorf("the large file is %d bytes of sum %s, and was written with sum %s", len(files["large"]), got, sum)
	}
	for name, want := range written {
		if got := files[name]; got != want {
			t.Errorf("%s holds %q, and last %q was written", name, got, want)
		}
	}
	disk.end(t)
}

// testAgreed compares what the two ends have agreed on, by the store and by the domain's own word, with what we offer: all
// of it, to all kernels.
func (x *xenCLI) testAgreed(t *testing.T, d *guestlab.Domain, queues int) {
	front := x.run(t, 0, fmt.Sprintf("xenstore-ls /local/domain/%d/device/vbd/51712", d.ID))
	asked := []string{`feature-persistent = "1"`, `protocol = "x86_64-abi"`}
	if queues > 1 {
		asked = append(asked, fmt.Sprintf(`multi-queue-num-queues = "%d"`, queues))
		for queue := range queues {
			asked = append(asked, fmt.Sprintf("queue-%d = ", queue))
		}
	}
	for _, want := range asked {
		if !strings.Contains(front, want) {
			t.Errorf("no %s in what the front end asked for:\n%s", want, front)
		}
	}
	// What the front end made of our offers, in the words of xlvbd_flush in the kernel.
	said := x.inside(t, d, "dmesg | grep 'blkfront: xvda'")
	t.Log(said)
	for _, want := range []string{"flush diskcache: enabled", "persistent grants: enabled", "indirect descriptors: enabled"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in what the domain says: %s", want, said)
		}
	}
	for file, want := range map[string]string{
		"queue/max_segments": "32", "queue/write_cache": "write back", "queue/fua": "0", "queue/discard_granularity": "4096",
	} {
		if got := x.inside(t, d, "cat /sys/block/xvda/"+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := x.inside(t, d, "ls /sys/block/xvda/mq | wc -l"); got != strconv.Itoa(queues) {
		t.Errorf("the domain has %s queues, not %d", got, queues)
	}
}

// testLarge writes a file, and reads it, by requests that are larger than what fits into the ring without indirect segments,
// through pages that stay mapped; and frees what another one took.
func (x *xenCLI) testLarge(t *testing.T, d *guestlab.Domain, disk *xenDisk) (sum string) {
	// Requests and sectors that the domain has read and written, as the kernel's iostats.rst counts them.
	stat := func() (n [4]int) {
		words := strings.Fields(x.inside(t, d, "cat /sys/block/xvda/stat"))
		for i, at := range []int{0, 2, 4, 6} {
			n[i], _ = strconv.Atoi(words[at])
		}
		return n
	}
	const direct = 11 * 8 // sectors of the largest request without
	was := stat()
	sum = x.inside(t, d, "cd /mnt/root; dd if=/dev/urandom of=large bs=1M count=3 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; md5sum large | cut -d' ' -f1")
	now := stat()
	for i, what := range []string{"reads", "writes"} {
		requests, sectors := now[2*i]-was[2*i], now[2*i+1]-was[2*i+1]
		t.Logf("%d sectors in %d %s", sectors, requests, what)
		if sectors < 3<<20/512 || sectors <= requests*direct {
			t.Errorf("%d %s have %d sectors: none of them has more than %d", requests, what, sectors, direct)
		}
	}
	// Pages that are granted once and for all are mapped, one by one.
	maps := x.run(t, 0, fmt.Sprintf("grep -c /dev/xen/gntdev /proc/%d/maps", disk.process(t, "vmscope-receiver")))
	t.Logf("%s mappings of the domain's memory", strings.TrimSpace(maps))
	if n, err := strconv.Atoi(strings.TrimSpace(maps)); err != nil || n < 32 {
		t.Errorf("mappings of the domain's memory: %q, want those of a large request's pages at least", maps)
	}
	used := func() int {
		out := x.run(t, 0, "du -k "+disk.image)
		n, err := strconv.Atoi(strings.Fields(out)[0])
		if err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return n
	}
	x.inside(t, d, "cd /mnt/root; dd if=/dev/urandom of=gone bs=1M count=2 2>/dev/null; sync")
	full := used()
	x.inside(t, d, "rm /mnt/root/gone; sync; fstrim /mnt")
	if now := used(); now >= full {
		t.Errorf("the image takes %d KiB, and took %d before the discards", now, full)
	}
	return sum
}

// testQueues writes from each processor, whose requests go through a queue of its own, while the process that serves the disk
// is killed; and gives the files that were written.
func (x *xenCLI) testQueues(t *testing.T, d *guestlab.Domain, disk *xenDisk, cpus int) map[string]string {
	calls := func() (n []int) {
		for line := range strings.Lines(x.inside(t, d, "grep blkif /proc/interrupts") + "\n") {
			sum := 0
			for _, word := range strings.Fields(line)[1 : 1+cpus] {
				c, err := strconv.Atoi(word)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				sum += c
			}
			n = append(n, sum)
		}
		if len(n) != cpus {
			t.Fatalf("event channels of %d queues, not %d", len(n), cpus)
		}
		return n
	}
	name := func(cpu int) string { return fmt.Sprintf("cpu%d", cpu) }
	// turns is how often each processor has written its file.
	turns := func() (n []int) {
		for cpu := range cpus {
			out := x.inside(t, d, "cat /tmp/"+name(cpu)+" 2>/dev/null || echo 0")
			c, err := strconv.Atoi(out)
			if err != nil {
				t.Fatalf("what processor %d has written: %q", cpu, out)
			}
			n = append(n, c)
		}
		return n
	}
	goOn := func(more int) {
		had := turns()
		x.await(t, "all processors write", "true", func(string) bool {
			for cpu, n := range turns() {
				if n < had[cpu]+more {
					return false
				}
			}
			return true
		})
	}
	was := calls()
	for cpu := range cpus {
		// By fsync, a processor puts its data into its own queue.
		x.inside(t, d, fmt.Sprintf(`cd /mnt/root
{ i=0; while [ ! -e /tmp/halt ]; do
	i=$((i+1)); echo $i | taskset -c %[1]d dd of=%[2]s conv=fsync || break; echo $i >/tmp/%[2]s.next; mv /tmp/%[2]s.next /tmp/%[2]s
done; touch /tmp/%[2]s.halted; } </dev/null >/dev/null 2>&1 &`, cpu, name(cpu)))
	}
	goOn(3)
	receiver := disk.process(t, "vmscope-receiver")
	x.run(t, 0, fmt.Sprintf("kill -9 %d", receiver))
	goOn(10)
	if now := disk.process(t, "vmscope-receiver"); now == receiver {
		t.Errorf("process %d serves the disk although it was killed", now)
	}
	x.inside(t, d, "touch /tmp/halt; until [ $(ls /tmp/cpu*.halted | wc -l) = "+strconv.Itoa(cpus)+" ]; do sleep 0.1; done 2>/dev/null")
	now := calls()
	for i := range now {
		t.Logf("queue %d: %d calls", i, now[i]-was[i])
		if now[i] == was[i] {
			t.Errorf("queue %d was not used", i)
		}
	}
	files := map[string]string{}
	for cpu, n := range turns() {
		files[name(cpu)] = fmt.Sprintln(n)
	}
	return files
}
