"""The YAML that `launch` writes for GKE: a JobSet, and the queue of Kueue that it waits in."""

KUEUE = """\
# Quota for the job, and the queue it waits in; leave it out where the cluster has a queue, and say queue=NAME.
# Written by mim_jax.tools.launch, after
#   kueue.sigs.k8s.io/docs/tasks/manage/administer_cluster_quotas
#   {docs}/tutorials/tpu-multislice-kueue
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata:
  name: {queue}
spec:
  nodeLabels:
    cloud.google.com/gke-tpu-accelerator: {node}
    cloud.google.com/gke-tpu-topology: {topology}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata:
  name: {queue}
spec:
  namespaceSelector: {{}}
  resourceGroups:
    - coveredResources: [google.com/tpu]
      flavors:
        - name: {queue}
          resources:
            - name: google.com/tpu
              nominalQuota: {chips}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata:
  name: {queue}
  namespace: default
spec:
  clusterQueue: {queue}
"""

JOBSET = """\
# The job as a JobSet (v0.10 or newer): a replica for each slice, a pod for each host.
# Written by mim_jax.tools.launch, after
#   jobset.sigs.k8s.io/docs/tasks/tpu_multislice
#   kueue.sigs.k8s.io/docs/tasks/run/jobsets
#   {docs}/how-to/tpu-multislice
#   {docs}/concepts/plan-tpus
#   {docs}/concepts/spot-vms
#   {docs}/how-to/cloud-storage-fuse-csi-driver-setup
#   {docs}/how-to/cloud-storage-fuse-csi-driver-ephemeral
# Each slice is a node pool of its own:
{pools}{notes}
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  labels:
    kueue.x-k8s.io/queue-name: {queue}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 10
    rules:
      - name: wrongConfig
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["exit code 2 "]
      - name: failed # counted, not final: a host that lost the others ends like this too
        action: RestartJobSet
        onJobFailureReasons: [PodFailurePolicy]
      - name: preempted
        action: RestartJobSetAndIgnoreMaxRestarts
  replicatedJobs:
    - name: slice
      replicas: {slices}
      template:
        spec:
          parallelism: {hosts}
          completions: {hosts}
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: Count
                onPodConditions:
                  - type: DisruptionTarget
              - action: FailJob
                onExitCodes:
                  containerName: job
                  operator: In
                  values: [2]
              - action: FailJob
                onExitCodes:
                  containerName: job
                  operator: NotIn
                  values: [143]
          template:{annotations}
            spec:{account}
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {node}
                cloud.google.com/gke-tpu-topology: {topology}{spot_node}
              containers:
                - name: job
                  image: {image}
                  command:
                    - bash
                    - -c
                    - |
{script}
                  securityContext:
                    privileged: true
                  resources:
                    limits:
                      google.com/tpu: {chips_per_host}
                  volumeMounts:
                    - name: shared-memory
                      mountPath: /dev/shm{bucket_mounts}
              volumes:
                - name: shared-memory # decoders of video and reading processes need more than the 64 MB of a container
                  emptyDir:
                    medium: Memory{bucket_volumes}
"""

KUBERNETES = {'jobset.yaml': JOBSET, 'kueue.yaml': KUEUE}
