package linux

import (
	"strings"
	"testing"
)

func TestContainerID(t *testing.T) {
	const (
		a = "4f2b1c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef"
		b = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	)
	for path, want := range map[string]string{
		// The host.
		"":                                 "",
		"/":                                "",
		"/init.scope":                      "",
		"/system.slice/docker.service":     "",
		"/system.slice/containerd.service": "",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.x.Y-123.scope": "",
		"/user.slice/user-1000.slice/session-2.scope":                                           "",
		"/docker":         "",
		"/kubepods.slice": "",
		"/kubepods/besteffort/pod8c4f2c6a-3d2e-11eb-8a5c-0242ac110002": "",
		"/machine.slice/libpod_parent":                                 "",
		"/system.slice/docker-registry.service":                        "",
		"/system.slice/docker-.scope":                                  "",
		"/system.slice/docker-cafe.scope":                              "",

		// Docker: cgroupfs, systemd, rootless, nested.
		"/docker/" + a:                              a,
		"/docker/" + a + "/init.scope":              a,
		"/docker/" + a + "/docker/" + b:             b,
		"/docker/" + a + " (deleted)":               a,
		"/system.slice/docker-" + a + ".scope":      a,
		"/system.slice/docker-" + a + ".scope/init": a,
		"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + a + ".scope": a,
		"/parent/custom/" + a: a,

		// Kubernetes with containerd, CRI-O, Docker; both cgroup drivers; kind.
		"/kubepods/burstable/pod8c4f2c6a-3d2e-11eb-8a5c-0242ac110002/" + a:                                              a,
		"/kubepods/pod8c4f2c6a-3d2e-11eb-8a5c-0242ac110002/crio-" + a:                                                   a,
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8c4f_2c.slice/cri-containerd-" + a + ".scope": a,
		"/kubepods.slice/kubepods-pod8c4f_2c.slice/crio-" + a + ".scope/container":                                      a,
		"/kubepods.slice/kubepods-pod8c4f_2c.slice/docker-" + a + ".scope":                                              a,
		"/system.slice/containerd.service/kubepods-burstable-pod8c4f_2c.slice:cri-containerd:" + a:                      a,
		"/docker/" + b + "/kubelet/kubepods/besteffort/pod8c4f2c6a/" + a:                                                a,
		"/docker/" + b + "/kubelet.slice/kubelet-kubepods.slice/cri-containerd-" + a + ".scope":                         a,
		"/kubepods.slice/kubepods-pod8c4f_2c.slice/crio-conmon-" + a + ".scope":                                         "",

		// Podman.
		"/machine.slice/libpod-" + a + ".scope":                                                     a,
		"/machine.slice/libpod-" + a + ".scope/container":                                           a,
		"/machine.slice/libpod-conmon-" + a + ".scope":                                              "",
		"/libpod_parent/libpod-" + a:                                                                a,
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + a + ".scope/container": a,
		"/machine.slice/machine-libpod_pod_" + b + ".slice/libpod-" + a + ".scope":                  a,
		"/machine.slice/machine-libpod_pod_" + b + ".slice":                                         "",

		// nerdctl, ctr.
		"/system.slice/nerdctl-" + a + ".scope": a,
		"/default/" + a:                         a,

		// LXC, LXD, Incus.
		"/lxc/web":                                        "web",
		"/lxc/web/system.slice/ssh.service":               "web",
		"/lxc.payload/web/init.scope":                     "web",
		"/lxc.payload.web":                                "web",
		"/lxc.payload.proj_web/system.slice/cron.service": "proj_web",
		"/lxc.monitor.web":                                "",
		"/lxc.monitor/web":                                "",
		"/lxc.payload.host/docker/" + a:                   a,

		// machinectl: systemd-nspawn, libvirt.
		"/machine.slice/machine-deb.scope/payload/system.slice/cron.service": "deb",
		`/machine.slice/machine-my\x2ddeb.scope`:                             "my-deb",
		"/machine.slice/systemd-nspawn@deb.service/payload":                  "deb",
		`/machine.slice/systemd-nspawn@my\x2ddeb.service/supervisor`:         "my-deb",
		`/machine.slice/machine-lxc\x2d4711\x2dweb.scope`:                    "web",
		`/machine.slice/machine-qemu\x2d3\x2dweb.scope/libvirt/emulator`:     "",

		// Amazon ECS.
		"/ecs/b7f0e1d2c3b4a5968778695a4b3c2d1e/" + a:                                        a,
		"/ecs/b7f0e1d2c3b4a5968778695a4b3c2d1e/b7f0e1d2c3b4a5968778695a4b3c2d1e-2531612879": "b7f0e1d2c3b4a5968778695a4b3c2d1e-2531612879",
		"/ecs/b7f0e1d2c3b4a5968778695a4b3c2d1e":                                             "",

		// GitHub's runners.
		"/actions_job/" + a: a,

		// Not quite.
		"/docker/" + a[:63]:                "",
		"/docker/" + a + "0":               "",
		"/docker/" + strings.ToUpper(a):    "",
		`/machine.slice/machine-\x2.scope`: `\x2`,
	} {
		if got := containerID(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

func FuzzContainerID(f *testing.F) {
	f.Add("/machine.slice/machine-lxc\\x2d4711\\x2dweb.scope")
	f.Add("/system.slice/containerd.service/kubepods-burstable-pod8c4f_2c.slice:cri-containerd:4f2b1c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef")
	f.Fuzz(func(t *testing.T, path string) {
		if id := containerID(path); len(id) > len(path) {
			t.Errorf("%q: %q", path, id)
		}
	})
}
