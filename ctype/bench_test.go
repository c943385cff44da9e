package ctype

import (
	"runtime"
	"testing"
)

func BenchmarkParse(b *testing.B) {
	blob := fixture(b, "")
	b.ReportAllocs()
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, err := Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFirstLookup includes building the name index, as a command does once.
func BenchmarkFirstLookup(b *testing.B) {
	blob := fixture(b, "")
	b.ReportAllocs()
	for b.Loop() {
		ts, err := Parse(blob)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRetained reports what a kernel's types hold beside the blob.
func BenchmarkRetained(b *testing.B) {
	blob := fixture(b, "")
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		ts, err := Parse(blob)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(ts)
	}
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "KiB-retained")
	b.ReportMetric(float64(len(blob))/1024, "KiB-blob")
}

func BenchmarkLookup(b *testing.B) {
	ts := kernel(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMember(b *testing.B) {
	typ, err := kernel(b).Lookup("task_struct")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := typ.Member("comm"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEnum(b *testing.B) {
	ts := kernel(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ts.Enum("MODULE_STATE_LIVE"); err != nil {
			b.Fatal(err)
		}
	}
}

// bigLayout is about what a view of Linux asks for.
type bigLayout struct {
	Task struct {
		Tasks     Field  `c:"task_struct.tasks"`
		PID       Field  `c:"task_struct.pid"`
		TGID      Field  `c:"task_struct.tgid"`
		Comm      Field  `c:"task_struct.comm"`
		State     Field  `c:"task_struct.__state|task_struct.state"`
		Exit      Field  `c:"task_struct.exit_state"`
		Flags     Field  `c:"task_struct.flags"`
		MM        Field  `c:"task_struct.mm"`
		ActiveMM  Field  `c:"task_struct.active_mm"`
		Parent    Field  `c:"task_struct.real_parent"`
		Leader    Field  `c:"task_struct.group_leader"`
		Cred      Field  `c:"task_struct.cred"`
		Files     Field  `c:"task_struct.files"`
		FS        Field  `c:"task_struct.fs"`
		NS        Field  `c:"task_struct.nsproxy"`
		Signal    Field  `c:"task_struct.signal"`
		Start     Field  `c:"task_struct.start_boottime"`
		ThreadN   Field  `c:"task_struct.thread_node"`
		Children  Field  `c:"task_struct.children"`
		Sibling   Field  `c:"task_struct.sibling"`
		Cgroups   Field  `c:"task_struct.cgroups,optional"`
		Size      uint64 `c:"sizeof(task_struct)"`
		ThreadHd  Field  `c:"signal_struct.thread_head"`
		UID       Field  `c:"cred.uid"`
		GID       Field  `c:"cred.gid"`
		EUID      Field  `c:"cred.euid"`
		CapEff    Field  `c:"cred.cap_effective"`
		PgD       Field  `c:"mm_struct.pgd"`
		MT        Field  `c:"mm_struct.mm_mt,optional"`
		MMap      Field  `c:"mm_struct.mmap,optional"`
		ArgStart  Field  `c:"mm_struct.arg_start"`
		ArgEnd    Field  `c:"mm_struct.arg_end"`
		EnvStart  Field  `c:"mm_struct.env_start"`
		EnvEnd    Field  `c:"mm_struct.env_end"`
		Exe       Field  `c:"mm_struct.exe_file"`
		VMStart   Field  `c:"vm_area_struct.vm_start"`
		VMEnd     Field  `c:"vm_area_struct.vm_end"`
		VMFlags   Field  `c:"vm_area_struct.vm_flags"`
		VMFile    Field  `c:"vm_area_struct.vm_file"`
		VMPgoff   Field  `c:"vm_area_struct.vm_pgoff"`
		FPath     Field  `c:"file.f_path"`
		FInode    Field  `c:"file.f_inode"`
		DParent   Field  `c:"dentry.d_parent"`
		DName     Field  `c:"dentry.d_name.name"`
		DLen      Field  `c:"dentry.d_name.len"`
		INo       Field  `c:"inode.i_ino"`
		ISB       Field  `c:"inode.i_sb"`
		IMode     Field  `c:"inode.i_mode"`
		SDev      Field  `c:"super_block.s_dev"`
		SType     Field  `c:"super_block.s_type"`
		MntRoot   Field  `c:"vfsmount.mnt_root"`
		MntParent Field  `c:"mount.mnt_parent"`
		MntPoint  Field  `c:"mount.mnt_mountpoint"`
	}
	Module struct {
		List   Field  `c:"module.list"`
		Name   Field  `c:"module.name"`
		State  Field  `c:"module.state"`
		Base   Field  `c:"module.mem[0].base|module.core_layout.base"`
		Size   Field  `c:"module.mem[0].size|module.core_layout.size"`
		Refs   Field  `c:"module.refcnt"`
		Taints Field  `c:"module.taints"`
		Live   uint64 `c:"enum(MODULE_STATE_LIVE)"`
	}
}

func BenchmarkBind(b *testing.B) {
	ts := kernel(b)
	b.ReportAllocs()
	for b.Loop() {
		var l bigLayout
		if err := Bind(ts, &l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkObjectUint(b *testing.B) {
	m := zoo().parse(b)
	o := lookup(b, m, "node").At(ram{0x1000, make([]byte, 4096)}.space(), 0x1000)
	f, err := o.Field("state")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Uint(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkObjectField(b *testing.B) {
	m := zoo().parse(b)
	o := lookup(b, m, "node").At(ram{0x1000, make([]byte, 4096)}.space(), 0x1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := o.Field("arr[3].b"); err != nil {
			b.Fatal(err)
		}
	}
}
